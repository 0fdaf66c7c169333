//! A call that is made in any case.

/// Calls its function when it is dropped: at the end of a scope or task, also after a panic or an abort.
pub(crate) struct OnDrop<F: FnMut()>(pub(crate) F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
