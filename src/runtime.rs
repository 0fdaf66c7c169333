//! Checks for a tokio runtime with timers, and with I/O for a real endpoint.
//!
//! tokio reports a missing driver only by a panic. Each thread probes a runtime once and catches
//! that panic; the panic hook still prints it. Under `panic = "abort"` nothing is probed, and the
//! first wait aborts the process with tokio's own message.

use std::cell::Cell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::LocalKey;

use tokio::runtime::{Handle, Id};

/// What is missing for a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    Runtime,
    Timers,
    #[cfg(any(feature = "workload-api", feature = "https-bundles"))]
    Io,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Runtime => {
                "there is no tokio runtime here; make this call in async code, or inside of \
                 `runtime.enter()`"
            }
            Self::Timers => {
                "the tokio runtime here has no timers; make this call on one that was built with \
                 `enable_all()`"
            }
            #[cfg(any(feature = "workload-api", feature = "https-bundles"))]
            Self::Io => {
                "the tokio runtime here has no I/O; make this call on one that was built with \
                 `enable_all()`"
            }
        })
    }
}

/// The runtime of this call, if it has timers.
pub(crate) fn with_timers() -> Result<Handle, Missing> {
    let here = Handle::try_current().map_err(|_| Missing::Runtime)?;
    if has_timers(&here) {
        Ok(here)
    } else {
        Err(Missing::Timers)
    }
}

pub(crate) fn has_timers(runtime: &Handle) -> bool {
    thread_local! {
        static KNOWN: Known = const { Cell::new([None; 4]) };
    }
    probe(&KNOWN, runtime, || {
        drop(tokio::time::sleep(std::time::Duration::ZERO));
    })
}

/// The runtime of this call, if it has timers and I/O.
#[cfg(any(feature = "workload-api", feature = "https-bundles"))]
pub(crate) fn with_io() -> Result<Handle, Missing> {
    let here = with_timers()?;
    if has_io(&here) {
        Ok(here)
    } else {
        Err(Missing::Io)
    }
}

#[cfg(any(feature = "workload-api", feature = "https-bundles"))]
fn has_io(runtime: &Handle) -> bool {
    thread_local! {
        static KNOWN: Known = const { Cell::new([None; 4]) };
    }
    // A socket that cannot be created says nothing about the runtime.
    probe(&KNOWN, runtime, || {
        #[cfg(unix)]
        drop(tokio::net::UnixStream::pair());
        #[cfg(not(unix))]
        drop(std::net::UdpSocket::bind("127.0.0.1:0").and_then(|socket| {
            socket.set_nonblocking(true)?;
            tokio::net::UdpSocket::from_std(socket)
        }));
    })
}

/// The last probed runtimes, and whether they have the driver.
type Known = Cell<[Option<(Id, bool)>; 4]>;

fn probe(known: &'static LocalKey<Known>, runtime: &Handle, use_driver: impl FnOnce()) -> bool {
    if cfg!(panic = "abort") {
        return true;
    }
    let id = runtime.id();
    let [first, second, third, fourth] = known.try_with(Cell::get).unwrap_or_default();
    let mut before = [first, second, third, fourth].into_iter().flatten();
    if let Some((_, has)) = before.find(|(known, _)| *known == id) {
        return has;
    }
    let _inside = runtime.enter();
    let has = catch_unwind(AssertUnwindSafe(use_driver)).is_ok();
    let _ = known.try_with(|known| known.set([Some((id, has)), first, second, third]));
    has
}
