//! A bound on the bytes in flight, whatever stage they are in.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// So many bytes may be in flight at once.
#[derive(Clone)]
pub struct Budget {
    shared: Arc<Account>,
}

struct Account {
    free: Mutex<usize>,
    freed: Condvar,
    limit: usize,
}

/// A share of a budget; returned when dropped.
pub struct Permit {
    shared: Arc<Account>,
    bytes: usize,
}

impl Budget {
    /// A budget of `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { shared: Arc::new(Account { free: Mutex::new(limit), freed: Condvar::new(), limit }) }
    }

    /// Waits until `bytes` are free, and takes them. More than the whole budget counts as
    /// the whole budget.
    #[must_use]
    pub fn take(&self, bytes: usize) -> Permit {
        let bytes = bytes.min(self.shared.limit);
        let mut free = self.shared.free.lock().unwrap_or_else(PoisonError::into_inner);
        while *free < bytes {
            free = self.shared.freed.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
        *free -= bytes;
        Permit { shared: self.shared.clone(), bytes }
    }

    /// Takes `bytes` if they are free now.
    #[must_use]
    pub fn try_take(&self, bytes: usize) -> Option<Permit> {
        let bytes = bytes.min(self.shared.limit);
        let mut free = self.shared.free.lock().unwrap_or_else(PoisonError::into_inner);
        if *free < bytes {
            return None;
        }
        *free -= bytes;
        Some(Permit { shared: self.shared.clone(), bytes })
    }
}

impl Permit {
    /// Splits `bytes` off, if there are as many.
    #[must_use]
    pub fn split(&mut self, bytes: usize) -> Option<Self> {
        self.bytes = self.bytes.checked_sub(bytes)?;
        Some(Self { shared: self.shared.clone(), bytes })
    }

    /// Gives back what is over `bytes`.
    pub fn shrink(&mut self, bytes: usize) {
        if bytes < self.bytes {
            give_back(&self.shared, self.bytes - bytes);
            self.bytes = bytes;
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        give_back(&self.shared, self.bytes);
    }
}

fn give_back(shared: &Account, bytes: usize) {
    *shared.free.lock().unwrap_or_else(PoisonError::into_inner) += bytes;
    shared.freed.notify_all();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;
    use std::time::Duration;

    #[test]
    fn what_is_over_the_limit_waits() {
        let budget = Budget::new(100);
        let mut first = budget.take(80);
        let waiting = {
            let budget = budget.clone();
            thread::spawn(move || drop(budget.take(50)))
        };
        thread::sleep(Duration::from_millis(20));
        assert!(!waiting.is_finished());
        first.shrink(10);
        waiting.join().unwrap();
        drop(first);
        drop(budget.take(1000));
    }

    #[test]
    fn a_share_can_be_divided() {
        let budget = Budget::new(100);
        let mut whole = budget.take(60);
        let part = whole.split(50).unwrap();
        assert!(whole.split(11).is_none());
        assert!(budget.try_take(41).is_none());
        drop(whole);
        assert!(budget.try_take(50).is_some() && budget.try_take(51).is_none());
        drop(part);
        assert!(budget.try_take(100).is_some());
    }
}
