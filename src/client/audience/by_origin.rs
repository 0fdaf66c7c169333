//! Values by origin.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use crate::client::Origin;
use crate::client::origin::Target;

/// Values by origin. A look-up needs only the target, so it allocates nothing.
#[derive(Clone)]
pub(super) struct ByOrigin<T> {
    hasher: RandomState,
    /// By the hash of the origin.
    values: HashMap<u64, Vec<(Origin, T)>>,
}

impl<T> ByOrigin<T> {
    pub(super) fn new() -> Self {
        Self {
            hasher: RandomState::new(),
            values: HashMap::new(),
        }
    }

    pub(super) fn get(&self, target: Target<'_>) -> Option<&T> {
        let same_hash = self.values.get(&self.hasher.hash_one(target))?;
        let mut same_hash = same_hash.iter();
        let (_, value) = same_hash.find(|(origin, _)| origin.target() == target)?;
        Some(value)
    }

    pub(super) fn insert(&mut self, origin: Origin, value: T) {
        let hash = self.hasher.hash_one(origin.target());
        self.values.entry(hash).or_default().push((origin, value));
    }

    pub(super) fn len(&self) -> usize {
        self.values.len()
    }
}
