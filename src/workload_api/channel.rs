//! The connection that all calls share, and its replacement by a new one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint as TonicEndpoint};

use super::connect::{Connector, Pulse};
use crate::clock::Clock;

/// Time and size limits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    /// Until a connection is open.
    pub(crate) connect: Duration,
    /// Until a single response is complete. An agent may take 30 s while its server is unreachable.
    pub(crate) call: Duration,
    /// Until the first message of a stream.
    pub(crate) first_message: Duration,
    /// Between two HTTP/2 pings while a stream is open.
    pub(crate) ping_interval: Duration,
    /// Until the response to a ping.
    pub(crate) ping_timeout: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            call: Duration::from_secs(35),
            // The first message is sent without delay (SPIFFE Workload API section 4.3).
            first_message: Duration::from_secs(10),
            // A default grpc-go server closes the connection at the third ping that comes less than
            // five minutes after the previous one. The extra seconds allow for inexact timers.
            ping_interval: Duration::from_secs(305),
            ping_timeout: Duration::from_secs(20),
        }
    }
}

/// A connection that the first call opens, and that is reopened after it broke.
pub(crate) struct Line {
    connector: Connector,
    timing: Timing,
    // Connections live on the runtime that the client was built on, also for calls from another one.
    runtime: Handle,
    pulse: Arc<Pulse>,
    /// `None` after the end.
    current: Mutex<Option<Arc<Numbered>>>,
    doubt: watch::Sender<u64>,
}

/// A channel and its generation.
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
            current: Mutex::default(),
            doubt: watch::Sender::new(0),
        };
        *line.lock() = Some(line.open(1));
        line
    }

    /// The current channel; `None` after [`close`](Self::close).
    pub(crate) fn current(&self) -> Option<Arc<Numbered>> {
        self.lock().clone()
    }

    /// Closes the connection permanently, also for calls that still wait on it.
    pub(crate) fn close(&self) {
        self.lock().take();
        self.pulse.close();
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Numbered>>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reports that the connection of this generation may be broken: the next call uses a new one, and
    /// sources are notified by [`doubts`](Self::doubts).
    pub(crate) fn doubt(&self, generation: u64) {
        let mut current = self.lock();
        // It is replaced once, also if several calls report it. Calls in progress on the old one are
        // not affected.
        if current
            .as_ref()
            .is_some_and(|it| it.generation == generation)
        {
            *current = Some(self.open(generation + 1));
        }
        drop(current);
        self.doubt.send_if_modified(|doubted| {
            let newer = generation > *doubted;
            *doubted = generation.max(*doubted);
            newer
        });
    }

    /// Watches reports of connections that may be broken: the newest such generation.
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

    fn open(&self, generation: u64) -> Arc<Numbered> {
        // The worker behind a channel is spawned where the channel is made.
        let _inside = self.runtime.enter();
        let connector = self.connector.clone();
        let pulse = self.pulse.clone();
        let within = self.timing.connect;
        // The authority that gRPC sends; the same one as grpc-go over a Unix socket.
        let channel = TonicEndpoint::from_static("http://localhost")
            .http2_keep_alive_interval(self.timing.ping_interval)
            .keep_alive_timeout(self.timing.ping_timeout)
            .keep_alive_while_idle(false)
            .connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
                let connector = connector.clone();
                let pulse = pulse.clone();
                async move { connector.connect(within, pulse).await.map(TokioIo::new) }
            }));
        Arc::new(Numbered {
            generation,
            channel,
        })
    }
}
