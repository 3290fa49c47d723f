//! The survey: which copies a loss would leave, what would be lost with it, and what that says about a cluster.
//!
//! Knows: copies, their failure-domain labels, how far each is. Pure: equal facts give equal answers.
//! Never knows: where facts come from, clocks, nodes' addresses, how anything is printed.
//!
//! What is not known stays unknown ([`Answer::Unknown`], [`Loss::Unknown`]); a caller treats that as no. A label that is
//! missing counts as one domain, shared by all copies that miss it (design page "survival").

#![forbid(unsafe_code)]

mod domain;
mod facts;
mod health;
mod placement;
mod proof;
mod survival;

pub use domain::{Domain, DomainError, Keys};
pub use facts::{Copy, CopyId, Facts, Fork, Freshness, Kind, Running};
pub use health::{Check, CheckId, Limits, PROOF_AGE_MS_MAX, PROOF_GRACE_MS, Severity, checks};
pub use placement::{Violation, placement};
pub use proof::{Proof, span};
pub use survival::{Answer, Loss, Recovery, Survival, scenarios, scenarios_of_two, survive};
