//! Many requests of one sort at a time, within limits.

use std::future::Future;

use futures::StreamExt;
use futures::stream::FuturesUnordered;

/// Requests under way at once for one object.
const CONCURRENCY: usize = 64;

/// Calls `create` `count` times in batches of 1, 2, 4 ... so that a template which the API server refuses costs one
/// refusal, not `count`. After the first batch with an error nothing more is tried. Returns what was made, and
/// the first error.
pub(crate) async fn slow_start<T, E, F, Fut>(count: usize, create: F) -> (Vec<T>, Option<E>)
where
    F: Fn(usize) -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    let mut made = Vec::with_capacity(count);
    let (mut next, mut batch) = (0, 1);
    while next < count {
        let size = batch.min(count - next);
        let (results, error) = concurrently((next..next + size).map(&create)).await;
        made.extend(results);
        if error.is_some() {
            return (made, error);
        }
        next += size;
        batch = size * 2;
    }
    (made, None)
}

/// Awaits all of these, some at a time. Returns the successes, and the first error.
pub(crate) async fn concurrently<T, E, Fut>(requests: impl IntoIterator<Item = Fut>) -> (Vec<T>, Option<E>)
where
    Fut: Future<Output = Result<T, E>>,
{
    let mut requests = requests.into_iter();
    let mut running: FuturesUnordered<Fut> = requests.by_ref().take(CONCURRENCY).collect();
    let (mut done, mut first_error) = (Vec::new(), None);
    while let Some(result) = running.next().await {
        match result {
            Ok(value) => done.push(value),
            Err(error) => first_error = first_error.or(Some(error)),
        }
        running.extend(requests.next());
    }
    (done, first_error)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[tokio::test]
    async fn batches_double_until_one_fails() {
        let calls = RefCell::new(Vec::new());
        let (made, error) = slow_start(20, |n| {
            calls.borrow_mut().push(n);
            async move { if n == 4 { Err("refused") } else { Ok(n) } }
        })
        .await;
        assert_eq!(*calls.borrow(), [0, 1, 2, 3, 4, 5, 6], "1 + 2 + 4, not the 8 after them");
        assert_eq!((made.len(), error), (6, Some("refused")));
        let (made, error) = slow_start(5, |n| async move { Ok::<_, ()>(n) }).await;
        assert_eq!((made, error), (vec![0, 1, 2, 3, 4], None));
    }
}
