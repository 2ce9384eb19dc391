//! `kubectl logs`: a container's log file by time, tail and size, and on as it grows.

use std::io::{self, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use jiff::Timestamp;
use tokio::fs::File;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncSeekExt, BufReader};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::answer::{Answer, text};
use super::route::{Query, find};
use crate::context::Context;
use crate::logs::parse_line;
use crate::pod::handle::PodView;
use crate::pod::observed::{ContainerObs, ContainerPhase};

/// A follower looks for new lines this often.
const LOOK: Duration = Duration::from_millis(50);
const CHUNKS: usize = 16;
const CHUNK_BYTES: usize = 32 << 10;
const BLOCK_BYTES: u64 = 64 << 10;

#[derive(Debug, Clone, Default)]
struct Options {
    follow: bool,
    timestamps: bool,
    tail: Option<u64>,
    since: Option<Timestamp>,
    limit: Option<u64>,
    stdout: bool,
    stderr: bool,
}

pub(super) fn answer(
    context: &Arc<Context>,
    namespace: &str,
    pod: &str,
    container: &str,
    query: &Query,
) -> Answer {
    let options = match options(query, context.clock.now()) {
        Ok(options) => options,
        Err(message) => return text(StatusCode::UNPROCESSABLE_ENTITY, message),
    };
    let view = match find(context, namespace, pod) {
        Ok(view) => view,
        Err(answer) => return *answer,
    };
    if view.model.container(container).is_none() {
        let message = format!("container \"{container}\" not found in pod \"{pod}\"\n");
        return text(StatusCode::NOT_FOUND, message);
    }
    let seen = match choose(&view, container, query.flag("previous")) {
        Ok(seen) => seen.clone(),
        Err(message) => return text(StatusCode::BAD_REQUEST, message),
    };
    let (sender, receiver) = mpsc::channel::<io::Result<Frame<Bytes>>>(CHUNKS);
    let context = context.clone();
    let (namespace, pod) = (namespace.to_owned(), pod.to_owned());
    tokio::spawn(async move {
        let runs = || {
            let view = context.pods.named(&namespace, &pod);
            view.is_some_and(|v| {
                v.observed.container(&seen.id).is_some_and(|c| c.phase != ContainerPhase::Exited)
            })
        };
        let mut out = Output { sender, buffer: Vec::new(), left: options.limit };
        // A reader that went away or a file that is gone ends the stream; there is nobody else to tell.
        if let Err(error) = stream(PathBuf::from(&seen.log_path), &options, &mut out, runs).await {
            tracing::debug!(%error, "log stream ended");
        }
        out.flush().await.ok();
    });
    let mut answer = Response::new(StreamBody::new(ReceiverStream::new(receiver)).boxed());
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

fn options(query: &Query, now: Timestamp) -> Result<Options, String> {
    let number = |name: &str| match query.get(name) {
        None | Some("") => Ok(None),
        Some(value) => match value.parse::<i64>() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(format!("{name}: Invalid value: {value:?}")),
        },
    };
    let since = match (number("sinceSeconds")?, query.get("sinceTime")) {
        (Some(seconds), _) => Some(now - Duration::from_secs(u64::try_from(seconds).unwrap_or(0))),
        (None, Some(time)) if !time.is_empty() => {
            Some(time.parse().map_err(|_| format!("sinceTime: Invalid value: {time:?}"))?)
        }
        _ => None,
    };
    let stream = query.get("stream").unwrap_or("All");
    Ok(Options {
        follow: query.flag("follow"),
        timestamps: query.flag("timestamps"),
        tail: number("tailLines")?.and_then(|n| u64::try_from(n).ok()),
        since,
        limit: number("limitBytes")?.and_then(|n| u64::try_from(n).ok()),
        stdout: stream != "Stderr",
        stderr: stream != "Stdout",
    })
}

/// The run of the container whose log is meant.
fn choose<'a>(view: &'a PodView, container: &str, previous: bool) -> Result<&'a ContainerObs, String> {
    let (pod, latest) = (&view.model.name, view.observed.latest(container));
    let statuses = [&view.status.init_container_statuses, &view.status.container_statuses];
    let status = statuses.into_iter().flatten().flatten().find(|s| s.name == container);
    let waiting = status.and_then(|s| s.state.as_ref()).and_then(|s| s.waiting.as_ref());
    if previous {
        let last = match latest {
            Some(seen) if seen.phase == ContainerPhase::Exited && waiting.is_some() => Some(seen),
            _ => view.observed.previous(container),
        };
        return last.ok_or_else(|| {
            format!("previous terminated container \"{container}\" in pod \"{pod}\" not found")
        });
    }
    latest.filter(|seen| !seen.log_path.is_empty()).ok_or_else(|| {
        let reason = waiting.and_then(|w| w.reason.clone()).unwrap_or_default();
        format!("container \"{container}\" in pod \"{pod}\" is waiting to start: {reason}")
    })
}

struct Output {
    sender: mpsc::Sender<io::Result<Frame<Bytes>>>,
    buffer: Vec<u8>,
    left: Option<u64>,
}

impl Output {
    /// False when no more is wanted.
    async fn write(&mut self, data: &[u8]) -> io::Result<bool> {
        let mut data = data;
        if let Some(left) = &mut self.left {
            let take = usize::try_from(*left).unwrap_or(usize::MAX).min(data.len());
            data = &data[..take];
            *left -= u64::try_from(take).unwrap_or(0);
        }
        self.buffer.extend_from_slice(data);
        if self.buffer.len() >= CHUNK_BYTES {
            self.flush().await?;
        }
        Ok(self.left != Some(0))
    }

    async fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let data = Bytes::from(std::mem::take(&mut self.buffer));
        self.sender.send(Ok(Frame::data(data))).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

async fn stream(
    path: PathBuf,
    options: &Options,
    out: &mut Output,
    runs: impl Fn() -> bool,
) -> io::Result<()> {
    let mut file = File::open(&path).await?;
    if let Some(lines) = options.tail {
        let start = tail_start(&mut file, lines).await?;
        file.seek(SeekFrom::Start(start)).await?;
    }
    let mut inode = file.metadata().await?.ino();
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    loop {
        let running = runs();
        let read = reader.read_until(b'\n', &mut line).await?;
        if read > 0 && line.ends_with(b"\n") {
            if !write_line(&line, options, out).await? {
                return Ok(());
            }
            line.clear();
            continue;
        }
        if !options.follow {
            return Ok(());
        }
        out.flush().await?;
        if out.sender.is_closed() {
            return Ok(());
        }
        // Rotation puts a new file in the old one's place; the old one has been read to its end.
        if let Ok(now) = tokio::fs::metadata(&path).await
            && now.ino() != inode
        {
            inode = now.ino();
            reader = BufReader::new(File::open(&path).await?);
            line.clear();
            continue;
        }
        if !running {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn write_line(line: &[u8], options: &Options, out: &mut Output) -> io::Result<bool> {
    let whole = String::from_utf8_lossy(line);
    let Some(entry) = parse_line(whole.trim_end_matches('\n')) else { return Ok(true) };
    if (entry.stderr && !options.stderr) || (!entry.stderr && !options.stdout) {
        return Ok(true);
    }
    if let Some(since) = options.since
        && entry.time.parse::<Timestamp>().is_ok_and(|time| time < since)
    {
        return Ok(true);
    }
    let mut text = String::new();
    if options.timestamps {
        text.push_str(entry.time);
        text.push(' ');
    }
    text.push_str(entry.text);
    if !entry.partial {
        text.push('\n');
    }
    out.write(text.as_bytes()).await
}

/// Where the last `lines` whole lines begin, read backwards block by block.
async fn tail_start(file: &mut File, lines: u64) -> io::Result<u64> {
    let length = file.metadata().await?.len();
    let mut end = length;
    let mut found = 0;
    let mut block = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(BLOCK_BYTES);
        file.seek(SeekFrom::Start(start)).await?;
        block.clear();
        (&mut *file).take(end - start).read_to_end(&mut block).await?;
        for (index, byte) in block.iter().enumerate().rev() {
            let position = start + u64::try_from(index).unwrap_or(0);
            if *byte == b'\n' && position + 1 != length {
                found += 1;
                if found == lines {
                    return Ok(position + 1);
                }
            }
        }
        if lines == 0 {
            return Ok(length);
        }
        end = start;
    }
    Ok(if lines == 0 { length } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn shown(text: &str, options: Options) -> String {
        let path = std::env::temp_dir().join(format!("cot-log-{}-{:p}", std::process::id(), &options));
        std::fs::write(&path, text).unwrap();
        let (sender, mut receiver) = mpsc::channel(CHUNKS);
        let mut out = Output { sender, buffer: Vec::new(), left: options.limit };
        stream(path.clone(), &options, &mut out, || false).await.unwrap();
        out.flush().await.unwrap();
        drop(out);
        let mut result = Vec::new();
        while let Some(frame) = receiver.recv().await {
            result.extend(frame.unwrap().into_data().unwrap());
        }
        std::fs::remove_file(path).unwrap();
        String::from_utf8(result).unwrap()
    }

    #[tokio::test]
    async fn options_choose_what_is_shown() {
        let log = "2026-01-01T00:00:01Z stdout F a\n2026-01-01T00:00:02Z stderr F b\n2026-01-01T00:00:03Z stdout P c\n\
                   2026-01-01T00:00:04Z stdout F d\n";
        let base = Options { stdout: true, stderr: true, ..Options::default() };
        for (options, expected) in [
            (base.clone(), "a\nb\ncd\n"),
            (Options { tail: Some(1), ..base.clone() }, "d\n"),
            (Options { tail: Some(0), ..base.clone() }, ""),
            (Options { tail: Some(9), ..base.clone() }, "a\nb\ncd\n"),
            (Options { since: Some("2026-01-01T00:00:02Z".parse().unwrap()), ..base.clone() }, "b\ncd\n"),
            (Options { limit: Some(3), ..base.clone() }, "a\nb"),
            (Options { stderr: false, ..base.clone() }, "a\ncd\n"),
            (Options { timestamps: true, tail: Some(1), ..base.clone() }, "2026-01-01T00:00:04Z d\n"),
            (Options { follow: true, ..base.clone() }, "a\nb\ncd\n"),
        ] {
            assert_eq!(shown(log, options.clone()).await, expected, "{options:?}");
        }
    }
}
