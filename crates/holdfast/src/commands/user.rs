//! `holdfast user`: what the cluster keeps of one person.

use clap::Subcommand;
use holdfast_client::v1;

use crate::clock;
use crate::commands::connect::ClientArgs;
use crate::exit::Exit;
use crate::output::{self, Format, Table};

/// Commands.
#[derive(Debug, Subcommand)]
pub enum User {
    /// Usage, newest version, what is backed up, and the devices that hold a copy.
    Show(ShowArgs),
}

/// Flags of `show`.
#[derive(Debug, clap::Args)]
pub struct ShowArgs {
    #[command(flatten)]
    connect: ClientArgs,
    /// Whose.
    #[arg(value_name = "USER")]
    user: String,
}

/// Runs a command.
pub async fn run(format: Format, command: User) -> anyhow::Result<Exit> {
    let User::Show(args) = command;
    let client = args.connect.client()?;
    let user = client.user(v1::GetUserRequest { user_id: args.user.clone(), consistency: None }).await?;
    let devices = client.list_devices(&args.user).await?.devices;
    match format {
        Format::Table => table(&user, &devices)?,
        Format::Json => output::object(&json(&args.user, &user, &devices))?,
        Format::Jsonl => output::line(&json(&args.user, &user, &devices))?,
    }
    Ok(Exit::Ok)
}

fn json(name: &str, user: &v1::GetUserResponse, devices: &[v1::Device]) -> serde_json::Value {
    let usage = user.usage.unwrap_or_default();
    let devices: Vec<_> = devices
        .iter()
        .map(|device| {
            serde_json::json!({
                "device_id": device.device_id,
                "acked_version": device.acked_version,
                "ack_time": device.ack_time.map(|at| clock::rfc3339(holdfast_wire::reply::millis(&at))),
            })
        })
        .collect();
    serde_json::json!({
        "v": 1,
        "user": name,
        "head_version": user.head_version,
        "tombstone_horizon": user.tombstone_horizon,
        "backed_up_version": user.backed_up_version,
        "record_count": usage.record_count,
        "used_bytes": usage.used_bytes,
        "quota_bytes": usage.quota_bytes,
        "devices": devices,
    })
}

fn table(user: &v1::GetUserResponse, devices: &[v1::Device]) -> anyhow::Result<()> {
    let usage = user.usage.unwrap_or_default();
    let quota = match usage.quota_bytes {
        0 => "no quota".to_owned(),
        quota => format!("of {}", output::bytes(quota)),
    };
    let backed_up = match user.backed_up_version {
        0 => "nothing yet".to_owned(),
        version if version == user.head_version => "all of it".to_owned(),
        version => format!("up to {}", output::version(version)),
    };
    let forgotten = match user.tombstone_horizon {
        0 => "none".to_owned(),
        version => format!("up to {}", output::version(version)),
    };
    for (what, value) in [
        ("records", usage.record_count.to_string()),
        ("used", format!("{} ({quota})", output::bytes(usage.used_bytes))),
        ("newest version", output::version(user.head_version)),
        ("in an offsite copy", backed_up),
        ("forgotten deletions", forgotten),
    ] {
        output::text(format!("{what:<20}{value}"))?;
    }
    if devices.is_empty() {
        output::text("no device has acknowledged anything")?;
        return Ok(());
    }
    output::text("")?;
    let mut rows = Table::new(&["device", "has", "said so"]);
    for device in devices {
        let at = device.ack_time.map(|at| clock::rfc3339(holdfast_wire::reply::millis(&at))).unwrap_or_default();
        rows.row([device.device_id.clone(), output::version(device.acked_version), at]);
    }
    Ok(rows.print()?)
}
