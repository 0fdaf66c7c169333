//! The tasks of a file: one writes each newer token, one runs the action after each write.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::watch;

use super::AfterWrite;
use super::disk::{FileId, Target, WriteError};
use super::error::{TokenFileError, TokenFileErrorReason};
use super::state::TokenFileState;
use crate::cause::Cause;
use crate::clock::Clock;
use crate::metrics::MetricsRecorder;
use crate::source::own_thread;
use crate::token::PinnedSvid;
use crate::token::{JwtSvid, SvidRequest};

/// Retries of a write or an action.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(30);
const JITTER: f64 = 0.2;

pub(super) struct Shared {
    request: SvidRequest,
    clock: Arc<dyn Clock>,
    metrics: Arc<dyn MetricsRecorder>,
    /// Locked during a write, so that no write finishes after the refresh has ended.
    disk: Mutex<Disk>,
    path: Box<Path>,
    record: Mutex<Record>,
    progress: watch::Sender<Progress>,
}

struct Disk {
    target: Target,
    remove: bool,
    written: Option<FileId>,
    ended: bool,
}

#[derive(Default)]
struct Record {
    svid: Option<JwtSvid>,
    written_at: Option<Duration>,
    failures: u64,
    error: Option<Arc<str>>,
    cause: Option<Cause>,
    after_write_error: Option<Arc<str>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Progress {
    writes: u64,
    ended: bool,
}

impl Shared {
    pub(super) fn new(
        pin: &PinnedSvid,
        target: Target,
        remove: bool,
        metrics: Arc<dyn MetricsRecorder>,
    ) -> Self {
        Self {
            request: pin.request().clone(),
            clock: pin.clock().clone(),
            metrics,
            path: target.path.as_path().into(),
            disk: Mutex::new(Disk {
                target,
                remove,
                written: None,
                ended: false,
            }),
            record: Mutex::default(),
            progress: watch::Sender::new(Progress {
                writes: 0,
                ended: false,
            }),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn state(&self) -> TokenFileState {
        let record = self.record();
        let progress = *self.progress.borrow();
        let svid = record.svid.as_ref();
        let (now, monotonic) = self.clock.both();
        TokenFileState {
            path: self.path.to_path_buf(),
            request: self.request.clone(),
            spiffe_id: svid.map(|svid| svid.spiffe_id().clone()),
            expires_in: svid.map(|svid| svid.expires_at().saturating_since(now)),
            last_write: record.written_at.map(|at| monotonic.saturating_sub(at)),
            writes: progress.writes,
            failures: record.failures,
            last_error: record.error.clone(),
            after_write_error: record.after_write_error.clone(),
            refreshed: !progress.ended,
        }
    }

    pub(super) async fn written(&self) -> Result<(), TokenFileError> {
        let mut progress = self.progress.subscribe();
        let found = progress.wait_for(|it| it.writes > 0 || it.ended).await;
        match found {
            Ok(progress) if progress.writes > 0 => Ok(()),
            _ => {
                let text = format!(
                    "token file {} was not written before the source of its tokens was shut down",
                    super::shown(&self.path)
                );
                let error = TokenFileError::new(TokenFileErrorReason::Closed, text);
                Err(match self.record().cause.clone() {
                    Some(cause) => error.because(cause),
                    None => error,
                })
            }
        }
    }

    /// Writes once. Blocks. `None` if the refresh has ended.
    fn write(&self, svid: &JwtSvid) -> Option<Result<(), WriteError>> {
        let mut disk = self.disk();
        if disk.ended {
            return None;
        }
        Some(match disk.target.write(svid.token()) {
            Ok(written) => {
                disk.written = Some(written);
                Ok(())
            }
            Err(error) => Err(error),
        })
    }

    /// Records and logs the result of a write; returns whether it succeeded. Not called on the
    /// thread of the write: a log subscriber may be set per thread.
    fn record_write(&self, svid: &JwtSvid, outcome: Result<(), WriteError>) -> bool {
        let written = outcome.is_ok();
        self.metrics
            .record_token_file(if written { "ok" } else { "error" });
        match outcome {
            Ok(()) => self.succeeded(svid),
            Err(error) => self.failed(error),
        }
        written
    }

    fn succeeded(&self, svid: &JwtSvid) {
        let news = {
            let mut record = self.record();
            let news = record.svid.is_none() || record.error.is_some();
            record.svid = Some(svid.clone());
            record.written_at = Some(self.clock.monotonic());
            record.error = None;
            record.cause = None;
            news
        };
        self.progress.send_modify(|progress| progress.writes += 1);
        let path = self.path.display();
        if news {
            tracing::info!(%path, "token file written");
        } else {
            tracing::debug!(%path, "token file written");
        }
    }

    fn failed(&self, failure: WriteError) {
        let error = failure.text;
        let known = {
            let mut record = self.record();
            record.failures += 1;
            let known = record.error.as_ref() == Some(&error);
            record.error = Some(error.clone());
            record.cause = failure.cause;
            known
        };
        let path = self.path.display();
        if known {
            tracing::debug!(%path, %error, "token file cannot be written; its old content stays");
        } else {
            tracing::warn!(%path, %error, "token file cannot be written; its old content stays");
        }
    }

    /// Records and logs the result of an action; returns whether it succeeded.
    fn record_action(&self, outcome: Result<(), String>) -> bool {
        let error = outcome.err().map(Arc::from);
        let known = {
            let mut record = self.record();
            let known = record.after_write_error == error;
            record.after_write_error = error.clone();
            known
        };
        let Some(error) = error else {
            return true;
        };
        let path = self.path.display();
        if known {
            tracing::debug!(%path, %error, "the action after the write of a token file failed");
        } else {
            tracing::warn!(%path, %error, "the action after the write of a token file failed");
        }
        false
    }

    /// Ends the refresh: no write starts after this. Waits for a write in progress, and blocks.
    pub(super) fn end(&self) -> End {
        let mut disk = self.disk();
        if std::mem::replace(&mut disk.ended, true) {
            return End::Before;
        }
        match disk.written {
            Some(written) if disk.remove => match disk.target.remove(written) {
                Ok(()) => End::Now,
                Err(error) => End::NotRemoved(error.to_string()),
            },
            _ => End::Now,
        }
    }

    pub(super) fn record_end(&self, end: End) {
        self.progress.send_modify(|progress| progress.ended = true);
        let path = self.path.display();
        match end {
            End::Before => return,
            End::Now => {}
            End::NotRemoved(error) => {
                tracing::warn!(%path, %error, "token file cannot be removed");
            }
        }
        tracing::info!(%path, "token file is no longer refreshed");
    }
}

/// How a file ended.
pub(super) enum End {
    /// It had already ended.
    Before,
    Now,
    NotRemoved(String),
}

/// Reports the end of the task, even if its runtime ends first.
struct Ended(Arc<Shared>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0
            .progress
            .send_if_modified(|progress| !std::mem::replace(&mut progress.ended, true));
    }
}

/// Writes each newer token, until the cache is closed.
pub(super) async fn write(shared: Arc<Shared>, pin: PinnedSvid) {
    let ended = Ended(shared.clone());
    let leftovers = shared.disk().target.clone();
    let _ = own_thread::run(move || leftovers.remove_leftovers()).await;
    let mut tokens = pin.updates();
    let mut unwritten: Option<JwtSvid> = None;
    let mut failures = 0;
    loop {
        let next = match &unwritten {
            None => tokens.next().await,
            Some(svid) => {
                let newer = tokio::time::timeout(retry_after(failures), tokens.next()).await;
                newer.unwrap_or_else(|_| Some(svid.clone()))
            }
        };
        let Some(svid) = next else {
            break;
        };
        let (here, token) = (shared.clone(), svid.clone());
        let outcome = own_thread::run(move || here.write(&token)).await;
        let outcome = outcome.unwrap_or_else(|| Some(Err(WriteError::panicked())));
        let Some(outcome) = outcome else {
            return;
        };
        if shared.record_write(&svid, outcome) {
            (unwritten, failures) = (None, 0);
        } else {
            (unwritten, failures) = (Some(svid), failures.saturating_add(1));
        }
    }
    drop(pin);
    let here = ended.0.clone();
    let end = own_thread::run(move || here.end()).await;
    shared.record_end(end.unwrap_or(End::Before));
}

/// Runs the action after each write, until the refresh ends.
pub(super) async fn act(shared: Arc<Shared>, action: Option<AfterWrite>) {
    let Some(action) = action else {
        return;
    };
    let mut progress = shared.progress.subscribe();
    let mut acted = 0;
    let mut failures = 0;
    loop {
        let write = progress.wait_for(|it| it.ended || it.writes > acted);
        let write = if failures == 0 {
            write.await.map(|it| *it).ok()
        } else {
            let write = tokio::time::timeout(retry_after(failures), write).await;
            match write {
                Ok(write) => write.map(|it| *it).ok(),
                Err(_) => Some(*shared.progress.borrow()),
            }
        };
        let Some(Progress {
            writes,
            ended: false,
        }) = write
        else {
            return;
        };
        acted = writes;
        let (path, action) = (shared.path.clone(), action.clone());
        let outcome = own_thread::run(move || action(&path)).await;
        let outcome = outcome.unwrap_or_else(|| Err("the action panicked".to_owned()));
        failures = if shared.record_action(outcome) {
            0
        } else {
            failures.saturating_add(1)
        };
    }
}

fn retry_after(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let jitter = 1.0 + JITTER * (2.0 * fastrand::f64() - 1.0);
    let pause = FIRST_RETRY.saturating_mul(1 << doublings);
    pause.min(LAST_RETRY).mul_f64(jitter).min(LAST_RETRY)
}
