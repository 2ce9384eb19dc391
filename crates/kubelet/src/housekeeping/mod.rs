//! Keeps the node from filling up: log rotation, image collection, eviction under pressure.

mod eviction;
mod images;
mod logs;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::context::Context;
use crate::node::status::Pressure;

/// How often the machine is looked at. Memory can run out faster, but then the kernel decides.
const LOOK: Duration = Duration::from_secs(10);

pub(crate) async fn run(context: Arc<Context>, pressure: watch::Sender<Pressure>) {
    let mut collector = images::Collector::default();
    let mut evictor = eviction::Evictor::new(&context.config.kubelet);
    loop {
        context.clock.sleep(LOOK).await;
        logs::rotate(&context).await;
        collector.collect(&context).await;
        let now = evictor.look(&context);
        pressure.send_if_modified(|before| std::mem::replace(before, now) != now);
    }
}
