//! Following the files.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::Instant;

use super::super::own_thread;
use super::super::trust_clock::TrustClock;
use super::document::{Contents, Document};
use super::error::{FileBundlesError, FileBundlesErrorReason as Reason};
use super::state::{FileBundlesState, FileState};
use crate::bundle::{BundleAnswer, BundlesUnavailable, JwtBundle, JwtBundleSet};
use crate::clock::Clock;
use crate::identity::TrustDomain;
use crate::metrics::MetricsRecorder;

pub(super) struct Followed {
    clock: TrustClock,
    metrics: Arc<dyn MetricsRecorder>,
    every: Duration,
    max_bytes: u64,
    hasher: RandomState,
    snapshot: ArcSwap<Snapshot>,
    revision: AtomicU64,
    revisions: watch::Sender<u64>,
    following: AtomicBool,
    files: Mutex<Vec<FileRecord>>,
}

struct Snapshot {
    set: JwtBundleSet,
    // Named in a map, and never readable: known, and without a key.
    unreadable: Vec<TrustDomain>,
}

struct FileRecord {
    document: Document,
    // Of the bytes that were last read, good or not.
    hash: u64,
    contents: Contents,
    error: Option<Box<str>>,
    looked: Duration,
    changed: Duration,
}

impl Followed {
    pub(super) fn open(
        documents: Vec<Document>,
        every: Duration,
        max_bytes: u64,
        clock: Arc<dyn Clock>,
        metrics: Arc<dyn MetricsRecorder>,
    ) -> Result<Self, FileBundlesError> {
        let hasher = RandomState::new();
        let clock = TrustClock::new(clock);
        let now = clock.monotonic();
        let mut files: Vec<FileRecord> = Vec::with_capacity(documents.len());
        for document in documents {
            let bytes = document.read(max_bytes).map_err(|error| {
                FileBundlesError::new(Reason::Io, Some(&document.path), error.to_string())
            })?;
            let contents = document
                .parse(&bytes, &JwtBundleSet::default())
                .map_err(|text| malformed(&document, text))?;
            let taken = files.iter().flat_map(|file| file.contents.domains());
            if let Some(domain) = { taken }.find(|domain| contents.has(domain)) {
                return Err(twice(&document, domain));
            }
            let error = contents.told();
            warn_of_no_keys(&document, &contents);
            let hash = hasher.hash_one(&bytes);
            let mut file = FileRecord {
                document,
                hash,
                contents,
                error: None,
                looked: now,
                changed: now,
            };
            if let Some(error) = error {
                file.fail(error);
            }
            files.push(file);
        }
        let snapshot = Snapshot::of(&files);
        Ok(Self {
            clock,
            metrics,
            every,
            max_bytes,
            hasher,
            snapshot: ArcSwap::from_pointee(snapshot),
            revision: AtomicU64::new(1),
            revisions: watch::Sender::new(1),
            following: AtomicBool::new(true),
            files: Mutex::new(files),
        })
    }

    pub(super) fn revision(&self) -> Result<u64, BundlesUnavailable> {
        if self.following.load(Ordering::Acquire) {
            Ok(self.revision.load(Ordering::Acquire))
        } else {
            Err(BundlesUnavailable::Closed)
        }
    }

    pub(super) fn bundle(&self, trust_domain: &str) -> BundleAnswer {
        if let Err(why) = self.revision() {
            return BundleAnswer::Unavailable(why);
        }
        let snapshot = self.snapshot.load();
        if let Some(bundle) = snapshot.set.get(trust_domain) {
            return BundleAnswer::Ready(bundle.clone());
        }
        let mut unreadable = snapshot.unreadable.iter();
        match unreadable.find(|known| known.name() == trust_domain) {
            // All others can be judged: a caller who names this one must not make a fault of ours.
            Some(known) => BundleAnswer::Ready(Arc::new(JwtBundle::without_keys(known.clone()))),
            None => BundleAnswer::UnknownTrustDomain,
        }
    }

    pub(super) fn bundle_set(&self) -> Result<JwtBundleSet, BundlesUnavailable> {
        self.revision()?;
        Ok(self.snapshot.load().set.clone())
    }

    pub(super) fn revisions(&self) -> watch::Receiver<u64> {
        self.revisions.subscribe()
    }

    pub(super) fn state(&self) -> FileBundlesState {
        let files = self.files();
        let now = self.clock.monotonic();
        let age = |file: &FileRecord| now.saturating_sub(file.looked);
        let overdue = overdue_after(self.every);
        FileBundlesState {
            revision: self.revision.load(Ordering::Acquire),
            following: self.following.load(Ordering::Acquire),
            overdue: files.iter().any(|file| age(file) > overdue),
            files: files
                .iter()
                .map(|file| FileState {
                    path: file.document.path.clone(),
                    trust_domains: file.contents.bundles.keys().cloned().collect(),
                    last_look: age(file),
                    last_change: now.saturating_sub(file.changed),
                    last_error: file.error.clone(),
                })
                .collect(),
        }
    }

    /// Looks at every file once. Blocks, and keeps nobody else waiting meanwhile: a file may stand
    /// on a disk that does not answer.
    fn look(&self) {
        let known = self.snapshot.load().set.clone();
        let documents: Vec<(Document, u64)> = {
            let files = self.files();
            let documents = files.iter().map(|file| (file.document.clone(), file.hash));
            documents.collect()
        };
        let looks: Vec<Look> = documents
            .iter()
            .map(|(document, hash)| self.read(document, *hash, &known))
            .collect();
        let now = self.clock.monotonic();
        let mut files = self.files();
        let looks = without_conflicts(looks, &files);
        let mut changed = false;
        let mut told_otherwise = false;
        for (file, look) in files.iter_mut().zip(looks) {
            file.looked = now;
            match look {
                Look::Failed(error) => file.fail(error),
                Look::Unchanged => file.error = file.contents.told(),
                Look::Fresh(hash, contents) => {
                    file.hash = hash;
                    told_otherwise |= !contents.says_what(&file.contents);
                    if contents.bundles != file.contents.bundles {
                        file.changed = now;
                        changed = true;
                        warn_of_no_keys(&file.document, &contents);
                    }
                    changed |= !contents.troubles.keys().eq(file.contents.troubles.keys());
                    let error = contents.told();
                    file.contents = contents;
                    match error {
                        Some(error) => file.fail(error),
                        None => file.error = None,
                    }
                }
            }
        }
        let bad = files.iter().filter(|file| file.error.is_some()).count();
        // Another element that is ignored changes no verdict: it is shown, and announced to nobody.
        let snapshot = (changed || told_otherwise).then(|| Snapshot::of(&files));
        // The lock is let go first: a recorder may look at the state.
        drop(files);
        for _ in 0..bad {
            self.metrics.record_error("bundle-file");
        }
        if let Some(snapshot) = snapshot {
            self.snapshot.store(Arc::new(snapshot));
        }
        if changed {
            let revision = self.revision.fetch_add(1, Ordering::AcqRel) + 1;
            self.revisions.send_replace(revision);
            self.metrics.record_update();
            tracing::info!(revision, "bundle files changed");
        }
    }

    fn read(&self, document: &Document, hash_before: u64, known: &JwtBundleSet) -> Look {
        let bytes = match document.read(self.max_bytes) {
            Ok(bytes) => bytes,
            Err(error) => return Look::Failed(format!("it cannot be read: {error}").into()),
        };
        let hash = self.hasher.hash_one(&bytes);
        if hash == hash_before {
            return Look::Unchanged;
        }
        match document.parse(&bytes, known) {
            Ok(contents) => Look::Fresh(hash, contents),
            // Not the hash: read again next time, it may be half written.
            Err(text) => Look::Failed(malformed(document, text).text().into()),
        }
    }

    /// How long ago the files were last looked at.
    fn age_of_looks(&self) -> Duration {
        let looked = self.files().iter().map(|file| file.looked).min();
        let now = self.clock.monotonic();
        now.saturating_sub(looked.unwrap_or(now))
    }

    fn files(&self) -> MutexGuard<'_, Vec<FileRecord>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FileRecord {
    fn fail(&mut self, error: Box<str>) {
        if self.error.as_ref() != Some(&error) {
            let path = self.document.path.display();
            tracing::warn!(%path, %error, "trouble with a bundle file; its last good bundles stay");
            self.error = Some(error);
        }
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
            .cloned()
            .collect();
        Self { set, unreadable }
    }
}

/// What looking at one file gave.
enum Look {
    Unchanged,
    Failed(Box<str>),
    Fresh(u64, Contents),
}

/// Of what was read, only what leaves each trust domain to one file: held against each other as
/// they are now, so that two files may exchange a trust domain. What is turned down here leaves
/// what was there before it, which may turn down another.
fn without_conflicts(mut looks: Vec<Look>, files: &[FileRecord]) -> Vec<Look> {
    loop {
        let mut owners: BTreeMap<&TrustDomain, usize> = BTreeMap::new();
        let mut conflict = None;
        // Those that stay as they are come first: theirs is theirs.
        for fresh in [false, true] {
            for (at, (look, file)) in looks.iter().zip(files).enumerate() {
                let contents = match look {
                    Look::Fresh(_, contents) if fresh => contents,
                    Look::Unchanged | Look::Failed(_) if !fresh => &file.contents,
                    _ => continue,
                };
                let taken = contents
                    .domains()
                    .find(|domain| owners.contains_key(domain));
                if let (Some(domain), true) = (taken, fresh) {
                    conflict = conflict.or(Some((at, twice(&file.document, domain))));
                    continue;
                }
                owners.extend(contents.domains().map(|domain| (domain, at)));
            }
        }
        let Some((at, error)) = conflict else {
            return looks;
        };
        if let Some(look) = looks.get_mut(at) {
            *look = Look::Failed(error.text().into());
        }
    }
}

fn malformed(document: &Document, text: String) -> FileBundlesError {
    FileBundlesError::new(Reason::Malformed, Some(&document.path), text)
}

fn twice(document: &Document, domain: &TrustDomain) -> FileBundlesError {
    let text = format!("another file has the bundle of {domain} already");
    FileBundlesError::new(Reason::TwoForOneTrustDomain, Some(&document.path), text)
}

/// A set may well be empty, and then all tokens of its trust domain are refused. But where there are
/// keys and none of them counts, the file is mostly of another kind than it was named as.
fn warn_of_no_keys(document: &Document, contents: &Contents) {
    for bundle in contents.bundles.values() {
        if let (true, Some(first)) = (bundle.is_empty(), bundle.ignored().first()) {
            tracing::warn!(
                path = %document.path.display(),
                trust_domain = bundle.trust_domain().name(),
                ignored = bundle.ignored().len(),
                why = %first,
                "no key in a bundle file counts; all tokens of its trust domain are refused"
            );
        }
    }
}

/// How old a look may be. Documented at `FileBundlesState::is_overdue`.
fn overdue_after(every: Duration) -> Duration {
    every
        .saturating_mul(2)
        .saturating_add(Duration::from_secs(2))
}

/// While a machine is suspended, timers stand still: the clocks are looked at in between.
const NAP: Duration = Duration::from_secs(1);

/// Looks again and again, for as long as somebody holds the source.
pub(super) fn spawn(followed: &Arc<Followed>, runtime: &Handle) {
    followed.metrics.record_ready(true);
    let every = followed.every;
    let mut jumps = followed.clock.jumps();
    let followed = Ended(Arc::downgrade(followed));
    runtime.spawn(async move {
        loop {
            let mut left = every;
            while !left.is_zero() {
                let nap = left.min(NAP);
                let began = Instant::now();
                let jumped = tokio::time::timeout(nap, jumps.changed()).await;
                let jumped = jumped.is_ok_and(|changed| changed.is_ok());
                let Some(followed) = followed.0.upgrade() else {
                    return;
                };
                // Also notices a jump.
                let age = followed.age_of_looks();
                left = if jumped || age >= every {
                    Duration::ZERO
                } else {
                    left.saturating_sub(began.elapsed())
                };
            }
            let Some(followed) = followed.0.upgrade() else {
                return;
            };
            jumps.mark_unchanged();
            // A file may stand on a disk that does not answer.
            if own_thread::run(move || followed.look()).await.is_none() {
                tracing::error!("reading the bundle files panicked; their last good bundles stay");
            }
        }
    });
}

/// Tells the source when its task goes, in whatever way.
struct Ended(Weak<Followed>);

impl Drop for Ended {
    fn drop(&mut self) {
        if let Some(followed) = self.0.upgrade() {
            followed.following.store(false, Ordering::Release);
            followed.metrics.record_ready(false);
            followed.revisions.send_modify(|_| {});
        }
    }
}
