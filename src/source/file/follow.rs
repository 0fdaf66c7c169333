//! Following the files.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::Instant;

use super::super::own_thread;
use super::super::regular_file;
use super::super::trust_clock::TrustClock;
use super::document::Document;
use super::error::{FileBundlesError, FileBundlesErrorReason as Reason};
use super::format::Contents;
use super::state::{FileBundlesState, FileState, FileTrustDomainState};
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

#[derive(Default)]
struct Snapshot {
    set: JwtBundleSet,
    // Named in a map, and never readable: known, and without a key.
    unreadable: Vec<TrustDomain>,
    // Of files that were not read yet.
    awaited: Vec<TrustDomain>,
    awaits_map: bool,
}

struct FileRecord {
    document: Document,
    // Of the bytes that were last read as bundles; none before the first.
    hash: Option<u64>,
    contents: Contents,
    error: Option<Box<str>>,
    // Why it could not be read at the last look.
    failure: Option<FileBundlesError>,
    looked: Duration,
    changed: Duration,
}

/// How a [`Followed`] is set up.
pub(super) struct Settings {
    pub(super) documents: Vec<Document>,
    pub(super) every: Duration,
    pub(super) max_bytes: u64,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: Arc<dyn MetricsRecorder>,
}

/// Which files a look is at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    All,
    /// Those that were not read yet.
    Unread,
}

impl Followed {
    /// Not one file is read yet.
    pub(super) fn new(settings: Settings) -> Result<Self, FileBundlesError> {
        let Settings {
            documents,
            every,
            max_bytes,
            clock,
            metrics,
        } = settings;
        let clock = TrustClock::new(clock);
        let now = clock.monotonic();
        let mut files: Vec<FileRecord> = Vec::with_capacity(documents.len());
        for document in documents {
            if let Some(domain) = document.format.trust_domain()
                && files.iter().any(|file| file.owns(domain))
            {
                return Err(twice(&document, domain));
            }
            files.push(FileRecord {
                document,
                hash: None,
                contents: Contents::default(),
                error: None,
                failure: None,
                looked: now,
                changed: now,
            });
        }
        Ok(Self {
            clock,
            metrics,
            every,
            max_bytes,
            hasher: RandomState::new(),
            snapshot: ArcSwap::from_pointee(Snapshot::of(&files)),
            revision: AtomicU64::new(0),
            revisions: watch::Sender::new(0),
            following: AtomicBool::new(true),
            files: Mutex::new(files),
        })
    }

    /// Reads all files now. Blocks.
    pub(super) fn read_now(&self) -> Result<(), FileBundlesError> {
        self.look(Which::All);
        match self.first_failure() {
            None => Ok(()),
            Some(failure) => Err(failure),
        }
    }

    /// Why the first of the files that were never read cannot be; none if all were read.
    fn first_failure(&self) -> Option<FileBundlesError> {
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
        let why = failure.as_ref().map_or("unknown", FileBundlesError::text);
        let text = format!(
            "it could not be read within {within:?}: {why}; check the path and what writes the \
             file, or raise `initial_sync_timeout`"
        );
        FileBundlesError::new(Reason::InitialSync, path, text)
    }

    /// Whether every file was read once.
    pub(super) fn is_ready(&self) -> bool {
        self.following.load(Ordering::Acquire) && self.snapshot.load().is_complete()
    }

    /// Waits until every file was read once. `false` if the runtime ended before.
    pub(super) async fn until_ready(&self) -> bool {
        let mut revisions = self.revisions();
        let settled = |revision: &u64| *revision == ENDED || self.is_ready();
        revisions.wait_for(settled).await.is_ok() && self.is_ready()
    }

    pub(super) fn revision(&self) -> Result<u64, BundlesUnavailable> {
        if !self.following.load(Ordering::Acquire) {
            return Err(BundlesUnavailable::Closed);
        }
        match self.revision.load(Ordering::Acquire) {
            0 => Err(BundlesUnavailable::NotReady),
            revision => Ok(revision),
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
            None if snapshot.awaits(trust_domain) => {
                BundleAnswer::Unavailable(BundlesUnavailable::NotReady)
            }
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
            ready: files.iter().all(|file| file.hash.is_some()),
            overdue: files.iter().any(|file| age(file) > overdue),
            files: files
                .iter()
                .map(|file| FileState {
                    path: file.document.path.clone(),
                    is_read: file.hash.is_some(),
                    trust_domains: domain_states(&file.contents),
                    last_look: age(file),
                    last_change: now.saturating_sub(file.changed),
                    last_error: file.error.clone(),
                })
                .collect(),
        }
    }

    /// Looks at the files once. Blocks, and keeps nobody else waiting meanwhile: a file may stand
    /// on a disk that does not answer.
    fn look(&self, which: Which) {
        let known = self.snapshot.load().set.clone();
        let documents: Vec<(Document, Option<u64>)> = {
            let files = self.files();
            let documents = files.iter().map(|file| (file.document.clone(), file.hash));
            documents.collect()
        };
        let looks: Vec<Look> = documents
            .iter()
            .map(|(document, hash)| match which {
                Which::Unread if hash.is_some() => Look::Skipped,
                _ => self.read(document, *hash, &known),
            })
            .collect();
        let now = self.clock.monotonic();
        let mut files = self.files();
        let looks = without_conflicts(looks, &files);
        let mut changed = false;
        let mut told_otherwise = false;
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
                    told_otherwise |= !contents.says_what(&file.contents);
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
        // Another element that is ignored changes no verdict: it is shown, and announced to nobody.
        if changed || told_otherwise {
            self.snapshot.store(Arc::new(Snapshot::of(&files)));
        }
        let before = changed.then(|| self.revision.fetch_add(1, Ordering::AcqRel));
        // Released after the bundles are in force, so that the state never shows what is not yet so,
        // and before a recorder is called: it may read the state.
        drop(files);
        for _ in 0..bad {
            self.metrics.record_error("bundle-file");
        }
        if let Some(before) = before {
            let revision = before + 1;
            self.revisions.send_replace(revision);
            if before > 0 {
                self.metrics.record_update();
                tracing::info!(revision, "bundle files changed");
            }
        }
    }

    fn read(&self, document: &Document, hash_before: Option<u64>, known: &JwtBundleSet) -> Look {
        let fail = |reason, text: String| {
            Look::Failed(FileBundlesError::new(reason, Some(&document.path), text))
        };
        let bytes = match regular_file::read(&document.path, self.max_bytes) {
            Ok(bytes) => bytes,
            Err(error) => return fail(Reason::Io, format!("it cannot be read: {error}")),
        };
        let hash = self.hasher.hash_one(&bytes);
        if hash_before == Some(hash) {
            return Look::Unchanged;
        }
        match document.format.parse(&bytes, known) {
            Ok(contents) => Look::Fresh(hash, contents),
            // Not the hash: read again next time, it may be half written.
            Err(text) => fail(Reason::Malformed, text),
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
    /// Whether the bundle of this trust domain comes from here, or will.
    fn owns(&self, domain: &TrustDomain) -> bool {
        self.claims().any(|claimed| claimed == domain)
    }

    fn claims(&self) -> impl Iterator<Item = &TrustDomain> {
        // A configured trust domain is its file's also while that cannot be read.
        let awaited = self.document.format.trust_domain();
        let awaited = awaited.filter(|_| self.hash.is_none());
        awaited.into_iter().chain(self.contents.domains())
    }

    /// Keeps what is wrong after a look.
    fn looked_at(&mut self, failure: Option<FileBundlesError>) {
        let error = match &failure {
            Some(failure) => Some(failure.text().into()),
            None => self.contents.told(),
        };
        // Keys that are not usable have a warning of their own.
        let is_unread = failure.is_some() || self.contents.has_unread();
        if let Some(error) = &error
            && is_unread
            && self.error.as_ref() != Some(error)
        {
            let path = self.document.path.display();
            tracing::warn!(%path, %error, "trouble with a bundle file; its last good bundles stay");
        }
        self.error = error;
        self.failure = failure;
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

fn domain_states(contents: &Contents) -> Vec<FileTrustDomainState> {
    let domains: BTreeSet<&TrustDomain> = contents.domains().collect();
    let state = |domain: &TrustDomain| {
        let bundle = contents.bundles.get(domain);
        let error = contents.troubles.get(domain);
        FileTrustDomainState {
            trust_domain: domain.clone(),
            keys: bundle.map_or(0, |bundle| bundle.len()),
            ignored_keys: bundle.map_or(0, |bundle| bundle.ignored().len()),
            last_error: error.or_else(|| contents.unusable.get(domain)).cloned(),
        }
    };
    domains.into_iter().map(state).collect()
}

/// What looking at one file gave.
enum Look {
    Skipped,
    Unchanged,
    Failed(FileBundlesError),
    Fresh(u64, Contents),
}

/// Of what was read, only what leaves each trust domain to one file: held against each other as
/// they are now, so that two files may exchange a trust domain. What is turned down here leaves
/// what was there before it, which may turn down another.
fn without_conflicts(mut looks: Vec<Look>, files: &[FileRecord]) -> Vec<Look> {
    loop {
        let mut owners: BTreeSet<&TrustDomain> = BTreeSet::new();
        let mut conflict = None;
        // Those that stay as they are come first: theirs is theirs.
        for fresh in [false, true] {
            for (at, (look, file)) in looks.iter().zip(files).enumerate() {
                match look {
                    Look::Fresh(_, contents) if fresh => {
                        let mut domains = contents.domains();
                        match domains.find(|domain| owners.contains(domain)) {
                            Some(domain) => {
                                conflict = conflict.or(Some((at, twice(&file.document, domain))));
                            }
                            None => owners.extend(contents.domains()),
                        }
                    }
                    Look::Skipped | Look::Unchanged | Look::Failed(_) if !fresh => {
                        owners.extend(file.claims());
                    }
                    _ => {}
                }
            }
        }
        let Some((at, error)) = conflict else {
            return looks;
        };
        if let Some(look) = looks.get_mut(at) {
            *look = Look::Failed(error);
        }
    }
}

fn twice(document: &Document, domain: &TrustDomain) -> FileBundlesError {
    let text = format!("another file has the bundle of {domain} already");
    FileBundlesError::new(Reason::TwoForOneTrustDomain, Some(&document.path), text)
}

/// An empty set rejects all tokens of its trust domain, on purpose. If there are keys and none of
/// them is usable, the file is mostly of another format than configured.
fn warn_of_no_keys(document: &Document, contents: &Contents) {
    for bundle in contents.bundles.values() {
        if let Some(first) = bundle.none_usable() {
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

/// How often files are looked for that were not read yet, at least.
const SEARCH: Duration = Duration::from_millis(250);

/// In place of a revision: the task has ended.
const ENDED: u64 = u64::MAX;

/// Looks again and again, for as long as somebody holds the source. With `read_first` at once, for
/// files that were not read yet.
pub(super) fn spawn(followed: &Arc<Followed>, runtime: &Handle, read_first: bool) {
    let mut was_ready = followed.is_ready();
    followed.metrics.record_ready(was_ready);
    let every = followed.every;
    let mut jumps = followed.clock.jumps();
    let followed = Ended(Arc::downgrade(followed));
    runtime.spawn(async move {
        // Until the next look at all files.
        let mut left = if read_first { Duration::ZERO } else { every };
        loop {
            if !left.is_zero() {
                let longest = if was_ready { NAP } else { SEARCH };
                let began = Instant::now();
                let jumped = tokio::time::timeout(left.min(longest), jumps.changed()).await;
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
            let which = match left.is_zero() {
                true => Which::All,
                false if was_ready => continue,
                false => Which::Unread,
            };
            let Some(followed) = followed.0.upgrade() else {
                return;
            };
            if which == Which::All {
                jumps.mark_unchanged();
                left = every;
            }
            // A file may stand on a disk that does not answer.
            let looking = followed.clone();
            if own_thread::run(move || looking.look(which)).await.is_none() {
                tracing::error!("reading the bundle files panicked; their last good bundles stay");
            }
            if !was_ready && followed.is_ready() {
                was_ready = true;
                followed.metrics.record_ready(true);
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
            followed.revisions.send_replace(ENDED);
        }
    }
}
