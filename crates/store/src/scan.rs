//! Scans of one family, in order, within bounds.

use rocksdb::{DBRawIterator, ReadOptions};

use crate::error::StoreError;
use crate::generation::Generation;
use crate::keyspace::{self, Family, PREFIX_BYTES};

/// Where a scan begins and ends: `[lower, upper)`.
#[derive(Debug, Clone)]
pub(crate) struct Bounds {
    lower: Vec<u8>,
    upper: Option<Vec<u8>>,
    reverse: bool,
}

impl Bounds {
    /// Everything.
    pub(crate) fn all() -> Self {
        Self { lower: Vec::new(), upper: None, reverse: false }
    }

    /// Keys that begin with `prefix`.
    pub(crate) fn prefix(prefix: &[u8]) -> Self {
        Self { lower: prefix.to_vec(), upper: keyspace::after_prefix(prefix), reverse: false }
    }

    /// From `lower` on.
    pub(crate) fn from(self, lower: Vec<u8>) -> Self {
        Self { lower: lower.max(self.lower), ..self }
    }

    /// Before `upper`.
    pub(crate) fn before(self, upper: Vec<u8>) -> Self {
        let upper = match self.upper {
            Some(bound) => bound.min(upper),
            None => upper,
        };
        Self { upper: Some(upper), ..self }
    }

    /// Last key first.
    pub(crate) fn reversed(self) -> Self {
        Self { reverse: true, ..self }
    }

    /// All keys within share one user prefix, so that bloom filters can rule files out.
    fn in_one_prefix(&self) -> bool {
        let prefix = self.lower.get(..PREFIX_BYTES);
        let end = prefix.and_then(keyspace::after_prefix);
        end.is_some() && self.upper.as_ref().zip(end).is_some_and(|(upper, end)| *upper <= end)
    }
}

/// Key and value.
pub(crate) type Row<'a> = (&'a [u8], &'a [u8]);

/// A running scan.
pub(crate) struct Scan<'a> {
    generation: &'a Generation,
    raw: DBRawIterator<'a>,
    reverse: bool,
    started: bool,
}

impl<'a> Scan<'a> {
    /// Starts a scan; `options` carry snapshot and caching.
    pub(crate) fn new(
        generation: &'a Generation,
        family: Family,
        bounds: Bounds,
        mut options: ReadOptions,
    ) -> Result<Self, StoreError> {
        // Without it RocksDB may skip rows of other prefixes; there is no automatic mode in this binding.
        let prefix_only = family.has_user_prefix() && !bounds.reverse && bounds.in_one_prefix();
        options.set_prefix_same_as_start(prefix_only);
        options.set_total_order_seek(!prefix_only);
        if !bounds.lower.is_empty() {
            options.set_iterate_lower_bound(bounds.lower.clone());
        }
        if let Some(upper) = bounds.upper {
            options.set_iterate_upper_bound(upper);
        }
        let mut raw = generation.iterate(family, options)?;
        match (bounds.reverse, bounds.lower.is_empty()) {
            (true, _) => raw.seek_to_last(),
            (false, true) => raw.seek_to_first(),
            (false, false) => raw.seek(&bounds.lower),
        }
        Ok(Self { generation, raw, reverse: bounds.reverse, started: false })
    }

    /// Next row; `None` at the end. A read error is never an end.
    pub(crate) fn next(&mut self) -> Result<Option<Row<'_>>, StoreError> {
        if self.started && self.raw.valid() {
            if self.reverse { self.raw.prev() } else { self.raw.next() }
        }
        self.started = true;
        match self.raw.item() {
            Some(item) => Ok(Some(item)),
            None => self.generation.finished(&self.raw).map(|()| None),
        }
    }
}
