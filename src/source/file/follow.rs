//! The last content of the files, and the lookups of validation.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;

use super::super::polling::overdue_after;
use super::super::regular_file;
use super::super::revision::Revision;
use super::super::trust_clock::TrustClock;
use super::FileBundlesBuilder;
use super::error::{FileBundlesError, FileBundlesErrorReason as Reason};
use super::format::BundleDocument;
use super::record::{
    Document, FileRecord, Look, domain_states, twice, warn_of_no_keys, without_conflicts,
};
use super::state::{FileBundlesState, FileState};
use crate::bundle::{BundleAnswer, BundlesUnavailable, JwtBundle, JwtBundleSet};
use crate::clock::Clock as _;
use crate::identity::TrustDomain;
use crate::metrics::{MetricsRecorder, Shielded};

pub(super) struct Followed {
    pub(super) clock: TrustClock,
    pub(super) metrics: Arc<dyn MetricsRecorder>,
    pub(super) every: Duration,
    max_bytes: u64,
    hasher: RandomState,
    snapshot: ArcSwap<Snapshot>,
    pub(super) revision: Revision,
    files: Mutex<Vec<FileRecord>>,
}

#[derive(Default)]
struct Snapshot {
    set: JwtBundleSet,
    // Named in a map but never readable: bundles without keys.
    unreadable: JwtBundleSet,
    // Of files that were not read yet.
    awaited: Vec<TrustDomain>,
    awaits_map: bool,
}

impl Followed {
    /// Reads no file yet.
    pub(super) fn new(builder: FileBundlesBuilder) -> Result<Self, FileBundlesError> {
        let clock = TrustClock::new(builder.clock);
        let now = clock.monotonic();
        let mut files: Vec<FileRecord> = Vec::with_capacity(builder.documents.len());
        for document in builder.documents {
            if let Some(domain) = document.format.trust_domain()
                && files.iter().any(|file| file.owns(domain))
            {
                return Err(twice(&document, domain));
            }
            files.push(FileRecord {
                document,
                hash: None,
                contents: BundleDocument::default(),
                error: None,
                failure: None,
                looked: now,
                changed: now,
            });
        }
        Ok(Self {
            clock,
            metrics: Arc::new(Shielded::new(builder.metrics.unwrap_or(Arc::new(())))),
            every: builder.every,
            max_bytes: builder.max_bytes,
            hasher: RandomState::new(),
            snapshot: ArcSwap::from_pointee(Snapshot::of(&files)),
            revision: Revision::default(),
            files: Mutex::new(files),
        })
    }

    /// Why the first file that was never read cannot be read; `None` if all were read.
    pub(super) fn first_failure(&self) -> Option<FileBundlesError> {
        let files = self.files();
        let unread = files.iter().find(|file| file.hash.is_none())?;
        let not_yet = || {
            let text = "it was not read yet";
            FileBundlesError::new(Reason::Io, Some(&unread.document.path), text)
        };
        Some(unread.failure.clone().unwrap_or_else(not_yet))
    }

    /// The error of a wait for the files that ended before all were read.
    pub(super) fn not_in_time(&self, within: Duration) -> FileBundlesError {
        let failure = self.first_failure();
        let path = failure.as_ref().and_then(FileBundlesError::path);
        let text = format!(
            "it could not be read within {within:?}; check the path and what writes the file, or \
             raise `initial_sync_timeout`"
        );
        let error = FileBundlesError::new(Reason::InitialSync, path, text);
        match failure {
            Some(failure) => error.because(failure),
            None => error,
        }
    }

    /// Whether every file was read once.
    pub(super) fn is_ready(&self) -> bool {
        !self.revision.has_ended() && self.snapshot.load().is_complete()
    }

    pub(super) fn bundle(&self, trust_domain: &str) -> BundleAnswer {
        if let Err(why) = self.revision.get() {
            return BundleAnswer::Unavailable(why);
        }
        let snapshot = self.snapshot.load();
        if let Some(bundle) = snapshot.set.get(trust_domain) {
            return BundleAnswer::Ready(bundle.clone());
        }
        match snapshot.unreadable.get(trust_domain) {
            // A caller that names it gets 401, not 503: all other trust domains are usable.
            Some(empty) => BundleAnswer::Ready(empty.clone()),
            None if snapshot.awaits(trust_domain) => {
                BundleAnswer::Unavailable(BundlesUnavailable::NotReady)
            }
            None => BundleAnswer::UnknownTrustDomain,
        }
    }

    pub(super) fn bundle_set(&self) -> Result<JwtBundleSet, BundlesUnavailable> {
        self.revision.get()?;
        Ok(self.snapshot.load().set.clone())
    }

    pub(super) fn state(&self) -> FileBundlesState {
        let files = self.files();
        let now = self.clock.monotonic();
        let age = |file: &FileRecord| now.saturating_sub(file.looked);
        let overdue = overdue_after(self.every);
        FileBundlesState {
            revision: self.revision.last(),
            following: !self.revision.has_ended(),
            overdue: files.iter().any(|file| age(file) > overdue),
            files: files
                .iter()
                .map(|file| FileState {
                    path: file.document.path.clone(),
                    read: file.hash.is_some(),
                    trust_domains: domain_states(&file.contents),
                    last_look: age(file),
                    last_change: now.saturating_sub(file.changed),
                    last_error: file.error.clone(),
                })
                .collect(),
        }
    }

    /// Reads all files once, or those that were not read yet. Blocks, without the lock: a disk may not
    /// respond.
    pub(super) fn look(&self, all: bool) {
        let known = self.snapshot.load().set.clone();
        let documents: Vec<(Document, Option<u64>)> = {
            let files = self.files();
            let documents = files.iter().map(|file| (file.document.clone(), file.hash));
            documents.collect()
        };
        let looks: Vec<Look> = documents
            .iter()
            .map(|(document, hash)| match hash {
                Some(_) if !all => Look::Skipped,
                _ => self.read(document, *hash, &known),
            })
            .collect();
        let now = self.clock.monotonic();
        let mut files = self.files();
        let looks = without_conflicts(looks, &files);
        let mut changed = false;
        let mut shown_changed = false;
        let mut bad = 0;
        for (file, look) in files.iter_mut().zip(looks) {
            if let Look::Skipped = look {
                continue;
            }
            file.looked = now;
            let failure = match look {
                Look::Failed(failure) => Some(failure),
                Look::Unchanged | Look::Skipped => None,
                Look::Fresh(hash, contents) => {
                    shown_changed |= !contents.is_shown_as(&file.contents);
                    let is_first = file.hash.is_none();
                    if is_first || contents.bundles != file.contents.bundles {
                        file.changed = now;
                        changed = true;
                        warn_of_no_keys(&file.document, &contents);
                    }
                    changed |= !contents.troubles.keys().eq(file.contents.troubles.keys());
                    file.hash = Some(hash);
                    file.contents = contents;
                    None
                }
            };
            file.looked_at(failure);
            bad += u32::from(file.error.is_some());
        }
        // A change of ignored elements is shown in the state; it changes no result of a validation,
        // so the revision stays.
        if changed || shown_changed {
            self.snapshot.store(Arc::new(Snapshot::of(&files)));
        }
        let raised = changed.then(|| self.revision.raise());
        // Released after the bundles are in use, so that the state never shows what is not applied
        // yet, and before a recorder is called: it may read the state.
        drop(files);
        for _ in 0..bad {
            self.metrics.record_error("bundle-file");
        }
        if let Some(revision) = raised {
            self.revision.notify(revision);
            if revision > 1 {
                self.metrics.record_update();
                tracing::info!(revision, "bundle files changed");
            }
        }
    }

    fn read(&self, document: &Document, hash_before: Option<u64>, known: &JwtBundleSet) -> Look {
        let bytes = match regular_file::read(&document.path, self.max_bytes) {
            Ok(bytes) => bytes,
            Err(error) => {
                let path = Some(document.path.as_path());
                let failure = FileBundlesError::new(Reason::Io, path, "it cannot be read");
                return Look::Failed(failure.because(error));
            }
        };
        let hash = self.hasher.hash_one(&bytes);
        if hash_before == Some(hash) {
            return Look::Unchanged;
        }
        match document.format.parse(&bytes, known) {
            Ok(contents) => Look::Fresh(hash, contents),
            // Without the hash, so that it is read again: it may be half written.
            Err(malformed) => Look::Failed(malformed.at(&document.path)),
        }
    }

    /// The time since the files were last read.
    pub(super) fn age_of_looks(&self) -> Duration {
        let looked = self.files().iter().map(|file| file.looked).min();
        let now = self.clock.monotonic();
        now.saturating_sub(looked.unwrap_or(now))
    }

    fn files(&self) -> MutexGuard<'_, Vec<FileRecord>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Snapshot {
    fn of(files: &[FileRecord]) -> Self {
        let bundles = files
            .iter()
            .flat_map(|file| file.contents.bundles.values().cloned());
        let set: JwtBundleSet = bundles.collect();
        let troubles = files.iter().flat_map(|file| file.contents.troubles.keys());
        let unreadable = troubles
            .filter(|domain| set.get(domain.name()).is_none())
            .map(|domain| JwtBundle::without_keys(domain.clone()))
            .collect();
        let unread = || files.iter().filter(|file| file.hash.is_none());
        let awaited = unread().filter_map(|file| file.document.format.trust_domain());
        Self {
            set,
            unreadable,
            awaited: awaited.cloned().collect(),
            awaits_map: unread().any(|file| file.document.format.trust_domain().is_none()),
        }
    }

    fn is_complete(&self) -> bool {
        self.awaited.is_empty() && !self.awaits_map
    }

    /// Whether a file that was not read yet may have this trust domain.
    fn awaits(&self, trust_domain: &str) -> bool {
        self.awaits_map || self.awaited.iter().any(|it| it.name() == trust_domain)
    }
}
