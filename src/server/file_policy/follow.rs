//! The file as it was last read, and its background task.

use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::runtime::Handle;

use super::document::Paths;
use super::dry_run::DryRun;
use super::error::{FilePolicyError, FilePolicyErrorReason as Reason};
use super::recorder::Recorder;
use super::rules::Rules;
use super::state::FilePolicyState;
use crate::clock::Clock as _;
use crate::metrics::MetricsRecorder as _;
use crate::source::on_drop::OnDrop;
use crate::source::polling::{NAP, NextCheck, overdue_after};
use crate::source::trust_clock::TrustClock;
use crate::source::{own_thread, regular_file};

/// A change takes effect if the next check finds the same content: the file may be half written.
const SETTLE: Duration = Duration::from_millis(250);

pub(super) struct Followed {
    pub(super) settings: Settings,
    hasher: RandomState,
    rules: ArcSwap<Rules>,
    following: AtomicBool,
    record: Mutex<Record>,
}

/// How a [`Followed`] is set up.
pub(super) struct Settings {
    pub(super) path: PathBuf,
    pub(super) paths: Paths,
    pub(super) every: Duration,
    pub(super) max_bytes: u64,
    pub(super) clock: TrustClock,
    pub(super) recorder: Recorder,
    pub(super) dry_run: Option<DryRun>,
}

struct Record {
    revision: u64,
    /// The hash of the content in use.
    hash: u64,
    /// The hash of a new content or error that was seen once.
    pending: Option<u64>,
    /// Counts the reads that took effect, so that a slower one does not undo them.
    reads: u64,
    error: Option<FilePolicyError>,
    looked: Duration,
    changed: Duration,
}

/// What a read found.
enum Look {
    Unchanged,
    Fresh(u64, Box<Rules>),
    Failed(u64, FilePolicyError),
}

impl Followed {
    /// Reads the file. Blocks.
    pub(super) fn open(settings: Settings) -> Result<Self, FilePolicyError> {
        let hasher = RandomState::new();
        let bytes = settings.read()?;
        let hash = hasher.hash_one(&bytes);
        let rules = settings.parse(&bytes)?;
        let now = settings.clock.monotonic();
        Ok(Self {
            settings,
            hasher,
            rules: ArcSwap::from_pointee(rules),
            following: AtomicBool::new(true),
            record: Mutex::new(Record {
                revision: 1,
                hash,
                pending: None,
                reads: 0,
                error: None,
                looked: now,
                changed: now,
            }),
        })
    }

    pub(super) fn rules(&self) -> arc_swap::Guard<Arc<Rules>> {
        self.rules.load()
    }

    /// Reads the file. Blocks, and holds no lock: a disk may hang.
    fn look(&self) -> Look {
        let known = self.record().hash;
        let failed =
            |error: FilePolicyError| Look::Failed(self.hasher.hash_one(error.to_string()), error);
        let bytes = match self.settings.read() {
            Ok(bytes) => bytes,
            Err(error) => return failed(error),
        };
        let hash = self.hasher.hash_one(&bytes);
        if hash == known {
            return Look::Unchanged;
        }
        match self.settings.parse(&bytes) {
            Ok(rules) => Look::Fresh(hash, Box::new(rules)),
            Err(error) => failed(error),
        }
    }

    /// Reads the file and applies it now. Blocks.
    pub(super) fn reload(&self) -> Result<(), FilePolicyError> {
        loop {
            let reads = self.reads();
            let look = self.look();
            let error = match &look {
                Look::Failed(_, error) => Some(error.clone()),
                Look::Unchanged | Look::Fresh(..) => None,
            };
            // Again, if another read took effect meanwhile: it may have begun before this one.
            if !self.apply(look, reads, true) {
                return error.map_or(Ok(()), Err);
            }
        }
    }

    fn reads(&self) -> u64 {
        self.record().reads
    }

    /// Applies what a read found, if it began after the last one that took effect. A new content is
    /// applied if it was found twice in a row, or if it is `settled`. Returns whether the file must be
    /// read again soon.
    fn apply(&self, look: Look, reads: u64, settled: bool) -> bool {
        let now = self.settings.clock.monotonic();
        let mut record = self.record();
        if record.reads != reads {
            return true;
        }
        record.looked = now;
        let seen = match &look {
            Look::Unchanged => None,
            Look::Fresh(hash, _) | Look::Failed(hash, _) => Some(*hash),
        };
        if seen.is_some() && seen != record.pending && !settled {
            record.pending = seen;
            return true;
        }
        record.reads += 1;
        let fresh = match look {
            Look::Failed(_, error) => {
                drop(record);
                self.failed(error);
                return false;
            }
            Look::Unchanged => None,
            Look::Fresh(hash, rules) => {
                let count = rules.rules.len();
                // With the lock held, so that the state never shows a policy that is not in use
                // yet.
                self.rules.store(Arc::from(rules));
                record.hash = hash;
                record.changed = now;
                record.revision += 1;
                Some((record.revision, count))
            }
        };
        record.pending = None;
        let recovered = record.error.take().is_some();
        drop(record);
        let path = self.settings.path.display();
        if recovered {
            tracing::info!(%path, "the policy file can be read again");
        }
        if let Some((revision, rules)) = fresh {
            tracing::info!(%path, revision, rules, "policy file changed");
        }
        false
    }

    /// Counts an error. Logs it if it differs from the last one.
    fn failed(&self, error: FilePolicyError) {
        let now = self.settings.clock.monotonic();
        let is_news = {
            let mut record = self.record();
            record.looked = now;
            let is_news = record.error.as_ref() != Some(&error);
            record.error = Some(error.clone());
            is_news
        };
        self.settings.recorder.record_error("policy-file");
        if is_news {
            tracing::warn!(
                path = %self.settings.path.display(),
                error = %error.text(),
                line = error.line(),
                column = error.column(),
                "policy file is unreadable or invalid; its last good policy stays in use"
            );
        }
    }

    pub(super) fn state(&self) -> FilePolicyState {
        let settings = &self.settings;
        let now = settings.clock.monotonic();
        let record = self.record();
        let last_look = now.saturating_sub(record.looked);
        FilePolicyState {
            path: settings.path.clone(),
            revision: record.revision,
            rules: self.rules.load().rules.len(),
            dry_run: settings.dry_run.is_some(),
            following: self.following.load(Ordering::Acquire),
            overdue: last_look > overdue_after(settings.every),
            last_look,
            last_change: now.saturating_sub(record.changed),
            last_error: record.error.clone(),
        }
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Settings {
    fn read(&self) -> Result<Vec<u8>, FilePolicyError> {
        regular_file::read(&self.path, self.max_bytes).map_err(|error| {
            let why = format!("it cannot be read: {error}");
            FilePolicyError::new(Reason::Io, why).in_file(&self.path)
        })
    }

    fn parse(&self, bytes: &[u8]) -> Result<Rules, FilePolicyError> {
        let rules = match std::str::from_utf8(bytes) {
            Ok(text) => Rules::read(text),
            Err(error) => {
                let valid = bytes.get(..error.valid_up_to()).unwrap_or_default();
                let text = String::from_utf8_lossy(valid);
                let why = "this is not TOML: it is not UTF-8";
                Err(FilePolicyError::at(Reason::Syntax, &text, text.len(), why))
            }
        };
        rules.map_err(|error| error.in_file(&self.path))
    }
}

/// Reads the file again and again, until the last handle of the policy is dropped.
pub(super) fn spawn(followed: &Arc<Followed>, runtime: &Handle) {
    let every = followed.settings.every;
    let mut next = NextCheck::new(&followed.settings.clock, every, every);
    let followed = Arc::downgrade(followed);
    let ended = followed.clone();
    // For any reason.
    let ended = OnDrop(move || {
        if let Some(followed) = ended.upgrade() {
            followed.following.store(false, Ordering::Release);
        }
    });
    runtime.spawn(async move {
        let _ended = ended;
        loop {
            next.nap(NAP).await;
            let Some(followed) = followed.upgrade() else {
                return;
            };
            // Also notices a jump.
            let now = followed.settings.clock.monotonic();
            let age = now.saturating_sub(followed.record().looked);
            if !next.is_due(age) {
                continue;
            }
            next.restart();
            let (looking, reads) = (followed.clone(), followed.reads());
            let look = own_thread::run(move || looking.look()).await;
            let is_unsettled = match look {
                Some(look) => followed.apply(look, reads, false),
                None => {
                    tracing::error!(
                        "reading the policy file panicked; its last good policy stays in use"
                    );
                    let why = "reading it failed because of a bug in this crate";
                    let error = FilePolicyError::new(Reason::Internal, why);
                    followed.failed(error.in_file(&followed.settings.path));
                    false
                }
            };
            if is_unsettled {
                next.hasten(SETTLE);
            }
        }
    });
}
