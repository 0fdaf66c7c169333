//! The last content of each file, and what another read changes.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use super::error::{FileBundlesError, FileBundlesErrorReason as Reason};
use super::format::{BundleDocument, BundleFormat};
use super::state::FileTrustDomainState;
use crate::identity::TrustDomain;

/// A file with bundles, and its format.
#[derive(Debug, Clone)]
pub(super) struct Document {
    pub(super) path: PathBuf,
    pub(super) format: BundleFormat,
}

/// A file and its last good content.
pub(super) struct FileRecord {
    pub(super) document: Document,
    // Of the bytes that were last read as bundles; `None` before the first read.
    pub(super) hash: Option<u64>,
    pub(super) contents: BundleDocument,
    pub(super) error: Option<Box<str>>,
    // Why the last read failed.
    pub(super) failure: Option<FileBundlesError>,
    pub(super) looked: Duration,
    pub(super) changed: Duration,
}

impl FileRecord {
    /// Whether this file owns the bundle of this trust domain, read or not yet.
    pub(super) fn owns(&self, domain: &TrustDomain) -> bool {
        self.claims().any(|claimed| claimed == domain)
    }

    fn claims(&self) -> impl Iterator<Item = &TrustDomain> {
        // A file that was not read yet owns its configured trust domain too.
        let awaited = self.document.format.trust_domain();
        let awaited = awaited.filter(|_| self.hash.is_none());
        awaited.into_iter().chain(self.contents.domains())
    }

    /// Keeps the error of a read, or removes it.
    pub(super) fn looked_at(&mut self, failure: Option<FileBundlesError>) {
        let error = match &failure {
            Some(failure) => Some(failure.full_text().into()),
            None => self.contents.summary(),
        };
        // `warn_of_no_keys` logs keys that are not usable.
        let is_unread = failure.is_some() || self.contents.has_unread();
        if let Some(error) = &error
            && is_unread
            && self.error.as_ref() != Some(error)
        {
            let path = self.document.path.display();
            tracing::warn!(%path, %error, "a bundle file cannot be read; its last good bundles stay");
        }
        self.error = error;
        self.failure = failure;
    }
}

pub(super) fn domain_states(contents: &BundleDocument) -> Vec<FileTrustDomainState> {
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

/// The result of reading one file.
pub(super) enum Look {
    Skipped,
    Unchanged,
    Failed(FileBundlesError),
    Fresh(u64, BundleDocument),
}

/// Rejects a file if another one already has one of its trust domains. All new contents are compared
/// together, so that two files may exchange a trust domain. A rejected file keeps its old contents,
/// which may conflict with another new one: so this repeats until there is no conflict.
pub(super) fn without_conflicts(mut looks: Vec<Look>, files: &[FileRecord]) -> Vec<Look> {
    loop {
        let mut owners: BTreeSet<&TrustDomain> = BTreeSet::new();
        let mut conflict = None;
        // Files that did not change come first: they keep their trust domains.
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

pub(super) fn twice(document: &Document, domain: &TrustDomain) -> FileBundlesError {
    let text = format!("another file has the bundle of {domain} already");
    FileBundlesError::new(Reason::TwoForOneTrustDomain, Some(&document.path), text)
}

/// An empty set is meant to reject all tokens. If a set has keys but no usable one, the file usually
/// has another format than configured.
pub(super) fn warn_of_no_keys(document: &Document, contents: &BundleDocument) {
    for bundle in contents.bundles.values() {
        if let Some(first) = bundle.none_usable() {
            tracing::warn!(
                path = %document.path.display(),
                trust_domain = bundle.trust_domain().name(),
                ignored = bundle.ignored().len(),
                why = %first,
                "no key in a bundle file is usable; all tokens of its trust domain are rejected"
            );
        }
    }
}
