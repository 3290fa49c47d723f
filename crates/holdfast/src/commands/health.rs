//! `holdfast cluster health`: what is not fine, from any node, with or without a quorum.

use holdfast_client::v1;
use holdfast_survey::{Severity, checks};
use serde::Serialize;

use crate::commands::connect::{AdminArgs, Statuses};
use crate::exit::Exit;
use crate::output::{self, Format};

/// A condition, as programs read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckAnswer {
    check_id: String,
    severity: &'static str,
    evidence: String,
    remedy: String,
}

#[derive(Debug, Serialize)]
struct HealthAnswer {
    v: u32,
    cluster_id: String,
    cluster_name: String,
    /// `ok`, `unsafe` or `unknown`.
    verdict: &'static str,
    nodes_asked: usize,
    nodes_answered: usize,
    checks: Vec<CheckAnswer>,
}

/// Judges a cluster.
pub async fn run(format: Format, args: &AdminArgs) -> anyhow::Result<Exit> {
    let statuses = args.statuses().await?;
    let checks = checks_of(&statuses);
    let exit = exit_of(&checks);
    let value = HealthAnswer {
        v: 1,
        cluster_id: statuses.first.cluster_id.clone(),
        cluster_name: statuses.first.cluster_name.clone(),
        verdict: match exit {
            Exit::Ok => "ok",
            Exit::Unsafe => "unsafe",
            _ => "unknown",
        },
        nodes_asked: statuses.first.nodes.len().max(statuses.by_id.len()),
        nodes_answered: statuses.by_id.len(),
        checks,
    };
    match format {
        Format::Json => output::object(&value)?,
        Format::Jsonl => output::line(&value)?,
        Format::Table => {
            if value.cluster_id.is_empty() {
                output::text("no cluster is founded here yet; run `holdfast cluster init`")?;
            } else {
                let (answered, asked) = (value.nodes_answered, value.nodes_asked);
                let name = &value.cluster_name;
                output::text(format!("cluster {name}: {}, {answered} of {asked} nodes answered", value.verdict))?;
            }
            print(&value.checks)?;
        }
    }
    Ok(exit)
}

/// All that is not fine, worst first: what the survey says, and what nodes say of themselves.
pub fn checks_of(statuses: &Statuses) -> Vec<CheckAnswer> {
    let (facts, limits) = statuses.facts();
    let surveyed = checks(&facts, &limits).into_iter().map(|check| {
        let answer = CheckAnswer {
            check_id: check.id.to_string(),
            severity: word(check.severity),
            evidence: check.evidence,
            remedy: check.remedy,
        };
        (check.severity, answer)
    });
    let told =
        statuses.by_id.iter().flat_map(|(id, status)| status.checks.iter().map(move |check| of_node(*id, check)));
    let mut all: Vec<(Severity, CheckAnswer)> = surveyed.chain(told).collect();
    all.sort_by(|(a, _), (b, _)| b.cmp(a));
    all.into_iter().map(|(_, check)| check).collect()
}

fn of_node(id: u64, check: &v1::HealthCheck) -> (Severity, CheckAnswer) {
    let severity = match v1::HealthSeverity::try_from(check.severity) {
        Ok(v1::HealthSeverity::Warning) => Severity::Warning,
        Ok(v1::HealthSeverity::Error) => Severity::Error,
        Ok(v1::HealthSeverity::Unknown | v1::HealthSeverity::Unspecified) | Err(_) => Severity::Unknown,
    };
    let answer = CheckAnswer {
        check_id: check.check_id.clone(),
        severity: word(severity),
        evidence: format!("node {id}: {}", check.evidence),
        remedy: check.remedy.clone(),
    };
    (severity, answer)
}

fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Warning => "warning",
        Severity::Unknown => "unknown",
        Severity::Error => "error",
    }
}

/// 3 when something is wrong, 4 when that is not known; warnings are worth knowing, no more.
fn exit_of(checks: &[CheckAnswer]) -> Exit {
    let any = |severity: Severity| checks.iter().any(|check| check.severity == word(severity));
    if any(Severity::Error) {
        Exit::Unsafe
    } else if any(Severity::Unknown) {
        Exit::Unknown
    } else {
        Exit::Ok
    }
}

/// Prints conditions for people.
pub fn print(checks: &[CheckAnswer]) -> std::io::Result<()> {
    for check in checks {
        output::text(format!("\n{:<7}  {}", check.severity, check.check_id))?;
        output::text(format!("         {}", check.evidence))?;
        output::text(format!("         clear it: {}", check.remedy))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(severity: Severity) -> CheckAnswer {
        CheckAnswer { check_id: "X".into(), severity: word(severity), evidence: String::new(), remedy: String::new() }
    }

    #[test]
    fn an_error_is_no_and_what_is_unknown_is_not_yes() {
        let exit = |all: &[Severity]| exit_of(&all.iter().copied().map(check).collect::<Vec<_>>());
        assert_eq!(exit(&[]), Exit::Ok);
        assert_eq!(exit(&[Severity::Warning]), Exit::Ok);
        assert_eq!(exit(&[Severity::Warning, Severity::Unknown]), Exit::Unknown);
        assert_eq!(exit(&[Severity::Unknown, Severity::Error]), Exit::Unsafe);
    }
}
