//! The one connection that every call goes over, and how it is exchanged for a fresh one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint as TonicEndpoint};

use super::connect::{Connector, Pulse};
use crate::clock::Clock;

/// How long things may take, and how much may come.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    /// Until a connection stands.
    pub(crate) connect: Duration,
    /// Until a single answer is complete. An agent may take 30 s while its server is away.
    pub(crate) call: Duration,
    /// Until the first message of a stream.
    pub(crate) first_message: Duration,
    /// Between two HTTP/2 pings while a stream is open.
    pub(crate) ping_interval: Duration,
    /// Until a ping's answer.
    pub(crate) ping_timeout: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            call: Duration::from_secs(35),
            // The first message is sent without delay (SPIFFE Workload API section 4.3).
            first_message: Duration::from_secs(10),
            // A default grpc-go server hangs up at the third ping that comes less than five minutes
            // after the one before; the rest is for a timer that fires early at either end.
            ping_interval: Duration::from_secs(305),
            ping_timeout: Duration::from_secs(20),
        }
    }
}

/// A connection that is made when the first call needs it, and made anew when it broke.
pub(crate) struct Line {
    connector: Connector,
    timing: Timing,
    // Connections live on the runtime that the client was made on, whichever one calls.
    runtime: Handle,
    pulse: Arc<Pulse>,
    current: ArcSwapOption<Numbered>,
    renewal: Mutex<Renewal>,
    doubt: watch::Sender<u64>,
}

/// What exchanging a channel goes by: two at once must not put the older one last, and one that
/// races with the end must not undo it.
#[derive(Default)]
struct Renewal {
    generation: u64,
    closed: bool,
}

/// A channel, and which one it is.
pub(crate) struct Numbered {
    pub(crate) generation: u64,
    pub(crate) channel: Channel,
}

impl Line {
    pub(crate) fn new(
        connector: Connector,
        timing: Timing,
        runtime: Handle,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let line = Self {
            connector,
            timing,
            runtime,
            pulse: Arc::new(Pulse::new(clock)),
            current: ArcSwapOption::empty(),
            renewal: Mutex::default(),
            doubt: watch::Sender::new(0),
        };
        line.renew_if(|_| true);
        line
    }

    /// The channel as it is now; `None` after [`close`](Self::close).
    pub(crate) fn current(&self) -> Option<Arc<Numbered>> {
        self.current.load_full()
    }

    /// Lets the connection go and has the next call make a new one. Calls under way on the old one
    /// end as they would have.
    fn renew_if(&self, generation_is: impl FnOnce(u64) -> bool) {
        let mut renewal = self.renewal();
        if renewal.closed || !generation_is(renewal.generation) {
            return;
        }
        renewal.generation += 1;
        let channel = self.channel();
        self.current.store(Some(Arc::new(Numbered {
            generation: renewal.generation,
            channel,
        })));
    }

    /// Closes the connection for good, also for calls that still wait on it.
    pub(crate) fn close(&self) {
        self.renewal().closed = true;
        self.current.store(None);
        self.pulse.close();
    }

    fn renewal(&self) -> MutexGuard<'_, Renewal> {
        self.renewal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that this generation's connection did not do what it should have: the next call gets
    /// another, and sources that follow the doubts are notified.
    pub(crate) fn doubt(&self, generation: u64) {
        // However many calls waited for it, it is exchanged once.
        self.renew_if(|current| current == generation);
        self.doubt.send_if_modified(|doubted| {
            let newer = generation > *doubted;
            if newer {
                *doubted = generation;
            }
            newer
        });
    }

    /// Tells of doubts: the newest generation in doubt.
    pub(crate) fn doubts(&self) -> watch::Receiver<u64> {
        self.doubt.subscribe()
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    pub(crate) fn place(&self) -> &str {
        self.connector.place()
    }

    pub(crate) fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    pub(crate) fn timing(&self) -> &Timing {
        &self.timing
    }

    fn channel(&self) -> Channel {
        // The worker behind a channel is spawned where the channel is made.
        let _inside = self.runtime.enter();
        let connector = self.connector.clone();
        let pulse = self.pulse.clone();
        let within = self.timing.connect;
        // The authority that gRPC sends; the same one as grpc-go over a Unix socket.
        TonicEndpoint::from_static("http://localhost")
            .http2_keep_alive_interval(self.timing.ping_interval)
            .keep_alive_timeout(self.timing.ping_timeout)
            .keep_alive_while_idle(false)
            .connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
                let connector = connector.clone();
                let pulse = pulse.clone();
                async move { connector.connect(within, pulse).await.map(TokioIo::new) }
            }))
    }
}
