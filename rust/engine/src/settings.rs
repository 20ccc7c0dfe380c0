//! What a worker is told at its start: one JSON object, unknown keys refused.

use serde::Deserialize;
use std::os::fd::RawFd;

/// The settings of one worker, version 1. Descriptors are inherited and owned by the worker alone.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// Always 1.
    pub(crate) version: u32,
    /// The worker slot, below `worker_slots`.
    pub(crate) slot: u32,
    /// How many slots the shared memory has.
    pub(crate) worker_slots: u32,
    /// The shared memory.
    pub(crate) shared_memory_fd: RawFd,
    /// The sealed snapshot to begin with.
    pub(crate) snapshot_fd: RawFd,
    /// Its generation.
    pub(crate) generation: u64,
    /// Who we are, in a sealed file; none outside a mesh and before the first certificate.
    #[serde(default)]
    pub(crate) identity_fd: Option<RawFd>,
    /// Its serial, for the supervisor's account.
    #[serde(default, rename = "identity_serial")]
    pub(crate) _identity_serial: Option<u64>,
    /// The channel to the supervisor.
    pub(crate) control_fd: RawFd,
    /// Listening sockets, by the name the snapshot uses.
    pub(crate) listeners: Vec<ListenerSetting>,
    /// Where accepted connections handed over by other workers arrive.
    pub(crate) inbox_fd: RawFd,
    /// Where to hand accepted connections over to.
    pub(crate) outboxes: Vec<OutboxSetting>,
    /// The channel to the agent's resolver.
    pub(crate) resolver_fd: RawFd,
    /// How long a drain may take when the supervisor cannot say so any more, in milliseconds.
    #[serde(default = "default_drain_ms")]
    pub(crate) drain_ms: u64,
    /// The level of the processes that log; a worker writes access records only.
    #[expect(
        dead_code,
        reason = "every child gets it, so that settings are written one way"
    )]
    pub(crate) log_level: String,
}

/// A listening socket.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListenerSetting {
    /// The listener's name in the snapshot.
    pub(crate) name: String,
    /// The socket.
    pub(crate) fd: RawFd,
}

/// Another worker's inbox.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OutboxSetting {
    /// The other worker's slot.
    pub(crate) slot: u32,
    /// The sending end.
    pub(crate) fd: RawFd,
}

/// Istio's default (`terminationDrainDuration` is 5 s, Envoy's `drain-time` under Istio 45 s).
fn default_drain_ms() -> u64 {
    45_000
}

impl Settings {
    /// Reads settings.
    ///
    /// # Errors
    /// A text that names the field at fault.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, String> {
        let settings: Self = serde_json::from_slice(json)
            .map_err(|problem| format!("worker settings: {problem}"))?;
        if settings.version != 1 {
            return Err(format!(
                "worker settings: version {} is not 1",
                settings.version
            ));
        }
        if settings.slot >= settings.worker_slots {
            return Err(format!(
                "worker settings: slot {} is not below worker_slots {}",
                settings.slot, settings.worker_slots
            ));
        }
        Ok(settings)
    }
}
