//! What is done with the requests of a route besides sending them on: tries, faults, edits.
//!
//! A value that was reported comes out in any form; the snapshot is never made then.
//! Tests: `snapshot/tests.rs`.

use std::collections::HashSet;

use super::Compiler;
use crate::document;
use crate::edits::{self, Field, HeaderEdits};
use crate::fault::{self, Abort, Delay, Fault, Share};
use crate::retry::Retry;

/// More tries than this are a loop.
const ATTEMPTS_MAX: u32 = 100;

/// The highest status of gRPC (`google.rpc.Code`).
const GRPC_STATUS_MAX: u32 = 16;

impl Compiler<'_> {
    pub(super) fn retry(&mut self, retry: document::Retry) -> Retry {
        let mark = self.problems.enter_member("retry");
        if retry.attempts > ATTEMPTS_MAX {
            let text = format!("{} is above {ATTEMPTS_MAX}", retry.attempts);
            self.problems.report_member("attempts", text);
        }
        if retry.backoff_ms == 0 {
            self.problems
                .report_member("backoff_ms", "a back-off is above 0 ms");
        }
        let mut seen = HashSet::new();
        self.each("on", retry.on.clone(), |this, _, condition| {
            if !seen.insert(condition as u8) {
                this.problems.report("given twice");
            }
            Some(())
        });
        let statuses = self.each("statuses", retry.statuses, |this, _, status| {
            this.status(status, 100)
        });
        self.problems.leave(mark);
        let mut policy = Retry::new(retry.attempts, retry.on, statuses, retry.backoff_ms);
        policy.per_try_timeout_ms = retry.per_try_timeout_ms;
        policy.avoid_tried = retry.avoid_tried;
        policy
    }

    /// A status from `least` to 599; a problem with the current value where it is none.
    fn status(&mut self, status: u32, least: u16) -> Option<u16> {
        let narrow = u16::try_from(status).ok();
        let status = narrow.filter(|status| (least..=599).contains(status));
        if status.is_none() {
            self.problems.report(format!("a status is {least} to 599"));
        }
        status
    }

    pub(super) fn fault(&mut self, fault: document::Fault) -> Fault {
        let mark = self.problems.enter_member("fault");
        let delay = fault.delay.map(|delay| {
            let mark = self.problems.enter_member("delay");
            if delay.fixed_ms == 0 {
                self.problems
                    .report_member("fixed_ms", "a delay is above 0 ms");
            }
            let share = self.share(delay.parts_per_million);
            self.problems.leave(mark);
            Delay {
                fixed_ms: delay.fixed_ms,
                share,
            }
        });
        let abort = fault.abort.and_then(|abort| {
            let mark = self.problems.enter_member("abort");
            let share = self.share(abort.parts_per_million);
            if abort.grpc_status.is_some_and(|it| it > GRPC_STATUS_MAX) {
                let text = format!("a gRPC status is 0 to {GRPC_STATUS_MAX}");
                self.problems.report_member("grpc_status", text);
            }
            let member = self.problems.enter_member("status");
            let status = self.status(abort.status, 200);
            self.problems.leave(member);
            self.problems.leave(mark);
            Some(Abort {
                status: status?,
                grpc_status: abort.grpc_status,
                share,
            })
        });
        self.problems.leave(mark);
        Fault { delay, abort }
    }

    fn share(&mut self, parts_per_million: u32) -> Share {
        if parts_per_million > fault::WHOLE {
            let text = format!("{parts_per_million} is above {}", fault::WHOLE);
            self.problems.report_member("parts_per_million", text);
        }
        Share(parts_per_million)
    }

    /// Checks edits; None when there are none.
    pub(super) fn edits(
        &mut self,
        member: &str,
        edits: Option<document::HeaderEdits>,
    ) -> Option<HeaderEdits> {
        let edits = edits?;
        let mark = self.problems.enter_member(member);
        let mut names = HashSet::new();
        let set = self.each("set", edits.set, |this, _, field| {
            if !names.insert(field.name.to_ascii_lowercase()) {
                this.problems.report_member("name", "set twice");
            }
            this.field(field)
        });
        let add = self.each("add", edits.add, |this, _, field| this.field(field));
        let remove = self.each("remove", edits.remove, |this, _, name| {
            if let Some(problem) = edits::name_problem(&name) {
                this.problems.report(format!("{name:?}: {problem}"));
            }
            Some(name)
        });
        self.problems.leave(mark);
        let is_empty = set.is_empty() && add.is_empty() && remove.is_empty();
        (!is_empty).then_some(HeaderEdits { set, add, remove })
    }

    fn field(&mut self, field: document::Field) -> Option<Field> {
        if let Some(problem) = edits::name_problem(&field.name) {
            let text = format!("{:?}: {problem}", field.name);
            self.problems.report_member("name", text);
        }
        if !edits::is_field_value(&field.value) {
            let text = "a field value has no control characters and no white space around it";
            self.problems.report_member("value", text);
        }
        Some(Field {
            name: field.name,
            value: field.value,
        })
    }
}
