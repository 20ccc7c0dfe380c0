//! Metric series: label sets interned at first sight, values as plain words.
//!
//! A worker looks a label set up once ([`SeriesTable::intern`]), keeps the number and from then on
//! adds to words. The first series of every kind is its overflow series: when the table or the label
//! arena is full, samples are counted there and nothing is lost but the labels.
//! Label values are stored in the order of the kind's names, each ended by NUL.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::SharedMemory;
use super::layout::{BUCKET_COUNT, BUCKETS_MS, LABEL_ARENA_BYTES, SERIES_MAX};

/// What a series counts; decides its label names and how its words are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Requests of HTTP exchanges.
    Http,
    /// Refused inputs, by reason.
    Rejected,
    /// Connections relayed as bytes.
    Tcp,
}

const KINDS: [Kind; 3] = [Kind::Http, Kind::Rejected, Kind::Tcp];

/// Istio's standard labels, in the order in which values are stored.
const HTTP_LABELS: &[&str] = &[
    "reporter",
    "source_workload",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_canonical_service",
    "source_canonical_revision",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
    "destination_canonical_service",
    "destination_canonical_revision",
    "request_protocol",
    "response_code",
    "response_flags",
    "grpc_response_status",
    "connection_security_policy",
];

const REJECTED_LABELS: &[&str] = &["reason"];

impl Kind {
    /// The label names of this kind. TCP series have Istio's labels without the three that only a
    /// response has.
    #[must_use]
    pub fn labels(self) -> Vec<&'static str> {
        match self {
            Self::Http => HTTP_LABELS.to_vec(),
            Self::Rejected => REJECTED_LABELS.to_vec(),
            Self::Tcp => HTTP_LABELS
                .iter()
                .copied()
                .filter(|name| !matches!(*name, "response_code" | "grpc_response_status"))
                .collect(),
        }
    }
}

/// A histogram, read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// Samples per bucket (not cumulative), +Inf last.
    pub buckets: [u64; BUCKET_COUNT],
    /// The sum of all samples: milliseconds or bytes.
    pub sum: f64,
}

/// What an HTTP series holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HttpTotals {
    /// Exchanges finished.
    pub requests: u64,
    /// From the first byte of the request to the last of the response.
    pub duration_ms: Histogram,
    /// Head and body of requests.
    pub request_bytes: Histogram,
    /// Head and body of responses.
    pub response_bytes: Histogram,
}

/// What a TCP series holds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TcpTotals {
    /// Connections opened.
    pub opened: u64,
    /// Connections closed.
    pub closed: u64,
    /// Bytes sent to the downstream.
    pub sent_bytes: u64,
    /// Bytes received from the downstream.
    pub received_bytes: u64,
}

/// One series summed over workers: its labels in the order of [`Kind::labels`], and its values.
#[derive(Clone, Debug)]
pub enum SeriesTotals {
    /// See [`Kind::Http`].
    Http(Vec<String>, Box<HttpTotals>),
    /// See [`Kind::Rejected`].
    Rejected(String, u64),
    /// See [`Kind::Tcp`].
    Tcp(Vec<String>, TcpTotals),
}

/// The number of an interned series in its worker's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Series(u32);

/// One finished exchange.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HttpSample {
    pub(crate) duration_us: u64,
    pub(crate) request_bytes: u64,
    pub(crate) response_bytes: u64,
}

/// A worker's table, for writing.
pub(crate) struct SeriesTable {
    memory: Rc<SharedMemory>,
    slot: u32,
    known: HashMap<(Kind, Box<[u8]>), u32>,
    used: u32,
    arena_used: usize,
}

impl SeriesTable {
    pub(super) fn take(memory: &Rc<SharedMemory>, slot: u32) -> Self {
        let mut table = Self {
            memory: Rc::clone(memory),
            slot,
            known: HashMap::new(),
            used: 0,
            arena_used: 0,
        };
        table.recall();
        if table.used == 0 {
            for kind in KINDS {
                let values = vec!["overflow"; kind.labels().len()];
                table.add(kind, &encode(&values));
            }
        }
        table
    }

    /// The number of this label set; `None` tells that the overflow series was taken.
    pub(crate) fn intern(&mut self, kind: Kind, values: &[&str]) -> (Series, bool) {
        let labels = encode(values);
        if let Some(index) = self.known.get(&(kind, labels.clone().into_boxed_slice())) {
            return (Series(*index), true);
        }
        if self.used == SERIES_MAX || labels.len() > LABEL_ARENA_BYTES - self.arena_used {
            return (Series(kind as u32), false);
        }
        (Series(self.add(kind, &labels)), true)
    }

    pub(crate) fn add_http(&self, series: Series, sample: HttpSample) {
        let values = self.memory.layout.series_values(self.slot, series.0);
        self.add_word(values, 1);
        let samples = [
            sample.duration_us,
            sample.request_bytes,
            sample.response_bytes,
        ];
        for (number, amount) in samples.into_iter().enumerate() {
            let scale = if number == 0 { 1_000.0 } else { 1.0 };
            let bucket = BUCKETS_MS.partition_point(|bound| *bound * scale < amount as f64);
            let histogram = values + histogram_offset(number);
            self.add_word(histogram + bucket * 8, 1);
            self.add_word(histogram + BUCKET_COUNT * 8, amount);
        }
    }

    pub(crate) fn add_tcp(&self, series: Series, totals: TcpTotals) {
        let values = self.memory.layout.series_values(self.slot, series.0);
        let words = [
            totals.opened,
            totals.closed,
            totals.sent_bytes,
            totals.received_bytes,
        ];
        for (number, amount) in words.into_iter().enumerate() {
            self.add_word(values + number * 8, amount);
        }
    }

    pub(crate) fn add_rejected(&self, series: Series) {
        self.add_word(self.memory.layout.series_values(self.slot, series.0), 1);
    }

    /// One writer per word: a plain load and store, no locked instruction.
    fn add_word(&self, offset: usize, amount: u64) {
        let word = self.memory.mapping.word64(offset);
        word.store(
            word.load(Ordering::Relaxed).wrapping_add(amount),
            Ordering::Relaxed,
        );
    }

    /// Reads back what an earlier worker of this slot interned.
    fn recall(&mut self) {
        while self.used < SERIES_MAX {
            let Some((kind, labels)) = read_labels(&self.memory, self.slot, self.used) else {
                break;
            };
            self.arena_used += labels.len();
            self.known
                .insert((kind, labels.into_boxed_slice()), self.used);
            self.used += 1;
        }
    }

    fn add(&mut self, kind: Kind, labels: &[u8]) -> u32 {
        let index = self.used;
        let layout = &self.memory.layout;
        self.memory
            .mapping
            .write(layout.label_arena(self.slot) + self.arena_used, labels);
        let entry = layout.series_entry(self.slot, index);
        let place = self.arena_used as u64;
        self.memory
            .mapping
            .word64(entry + 8)
            .store(place, Ordering::Relaxed);
        let ready = ((kind as u64 + 1) << 32) | labels.len() as u64;
        self.memory
            .mapping
            .word64(entry)
            .store(ready, Ordering::Release);
        self.arena_used += labels.len();
        self.used += 1;
        self.known.insert((kind, labels.into()), index);
        index
    }
}

/// Every series of every worker, equal labels summed.
pub(super) fn read_all(memory: &SharedMemory) -> Vec<SeriesTotals> {
    let mut places: HashMap<(Kind, Vec<u8>), usize> = HashMap::new();
    let mut totals = Vec::new();
    for slot in 0..memory.layout.worker_slots {
        for index in 0..SERIES_MAX {
            let Some((kind, labels)) = read_labels(memory, slot, index) else {
                break;
            };
            if index < KINDS.len() as u32 && is_untouched(memory, slot, index) {
                continue;
            }
            let place = *places
                .entry((kind, labels))
                .or_insert_with_key(|(kind, labels)| {
                    totals.push(empty(*kind, labels));
                    totals.len() - 1
                });
            accumulate(memory, slot, index, &mut totals[place]);
        }
    }
    totals
}

/// An overflow series nobody needed is not shown.
fn is_untouched(memory: &SharedMemory, slot: u32, index: u32) -> bool {
    word(memory, slot, index, 0).load(Ordering::Relaxed) == 0
}

fn empty(kind: Kind, labels: &[u8]) -> SeriesTotals {
    let mut values = decode(labels);
    match kind {
        Kind::Http => SeriesTotals::Http(values, Box::default()),
        Kind::Rejected => SeriesTotals::Rejected(values.pop().unwrap_or_default(), 0),
        Kind::Tcp => SeriesTotals::Tcp(values, TcpTotals::default()),
    }
}

fn accumulate(memory: &SharedMemory, slot: u32, index: u32, into: &mut SeriesTotals) {
    let value = |number| word(memory, slot, index, number).load(Ordering::Relaxed);
    match into {
        SeriesTotals::Http(_, totals) => {
            totals.requests += value(0);
            let histograms = [
                &mut totals.duration_ms,
                &mut totals.request_bytes,
                &mut totals.response_bytes,
            ];
            for (number, histogram) in histograms.into_iter().enumerate() {
                let first = histogram_offset(number) / 8;
                for (bucket, count) in histogram.buckets.iter_mut().enumerate() {
                    *count += value(first + bucket);
                }
                let scale = if number == 0 { 1_000.0 } else { 1.0 };
                histogram.sum += value(first + BUCKET_COUNT) as f64 / scale;
            }
        }
        SeriesTotals::Rejected(_, count) => *count += value(0),
        SeriesTotals::Tcp(_, totals) => {
            totals.opened += value(0);
            totals.closed += value(1);
            totals.sent_bytes += value(2);
            totals.received_bytes += value(3);
        }
    }
}

fn read_labels(memory: &SharedMemory, slot: u32, index: u32) -> Option<(Kind, Vec<u8>)> {
    let entry = memory.layout.series_entry(slot, index);
    let ready = memory.mapping.word64(entry).load(Ordering::Acquire);
    let kind = *KINDS.get((ready >> 32).checked_sub(1)? as usize)?;
    let length = ready as u32 as usize;
    let place = memory.mapping.word64(entry + 8).load(Ordering::Relaxed) as usize;
    if place.checked_add(length)? > LABEL_ARENA_BYTES {
        return None;
    }
    let mut labels = Vec::with_capacity(length);
    memory
        .mapping
        .read(memory.layout.label_arena(slot) + place, length, &mut labels);
    Some((kind, labels))
}

fn word(memory: &SharedMemory, slot: u32, index: u32, number: usize) -> &AtomicU64 {
    memory
        .mapping
        .word64(memory.layout.series_values(slot, index) + number * 8)
}

/// Word 0 is the counter; the histograms follow.
fn histogram_offset(number: usize) -> usize {
    8 * (1 + number * (BUCKET_COUNT + 1))
}

fn encode(values: &[&str]) -> Vec<u8> {
    let mut labels = Vec::with_capacity(values.iter().map(|value| value.len() + 1).sum());
    for value in values {
        labels.extend(value.bytes().filter(|byte| *byte != 0));
        labels.push(0);
    }
    labels
}

fn decode(labels: &[u8]) -> Vec<String> {
    let ended = labels.strip_suffix(&[0]).unwrap_or(labels);
    ended
        .split(|byte| *byte == 0)
        .map(|value| String::from_utf8_lossy(value).into_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn memory() -> Rc<SharedMemory> {
        Rc::new(SharedMemory::create(3).unwrap())
    }

    fn labels(code: &str) -> Vec<&str> {
        let mut values = vec!["unknown"; HTTP_LABELS.len()];
        values[19] = code;
        values
    }

    fn http(memory: &SharedMemory) -> Vec<(String, HttpTotals)> {
        let code = |values: Vec<String>| values[19].clone();
        memory
            .series()
            .into_iter()
            .filter_map(|series| match series {
                SeriesTotals::Http(values, totals) => Some((code(values), *totals)),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn equal_labels_of_two_workers_are_one_series() {
        let memory = memory();
        for slot in 0..2 {
            let mut table = SeriesTable::take(&memory, slot);
            let (series, _) = table.intern(Kind::Http, &labels("200"));
            let sample = HttpSample {
                duration_us: 1_500,
                request_bytes: 100,
                response_bytes: 2_000,
            };
            table.add_http(series, sample);
        }
        let [(code, totals)] = &http(&memory)[..] else {
            panic!("one series")
        };
        assert_eq!((code.as_str(), totals.requests), ("200", 2));
        assert_eq!(totals.duration_ms.buckets[2], 2, "1.5 ms lies in (1, 5]");
        assert_eq!(totals.duration_ms.sum, 3.0);
        assert_eq!(totals.request_bytes.buckets[6], 2, "100 B lie in (50, 100]");
        assert_eq!(
            totals.response_bytes.buckets[10], 2,
            "2000 B lie in (1000, 2500]"
        );
    }

    #[test]
    fn a_bound_belongs_to_its_own_bucket() {
        let memory = memory();
        let mut table = SeriesTable::take(&memory, 0);
        let (series, _) = table.intern(Kind::Http, &labels("200"));
        for (microseconds, bucket) in [(0, 0), (500, 0), (501, 1), (5_000_000_000, 19)] {
            let before = http(&memory);
            let sample = HttpSample {
                duration_us: microseconds,
                request_bytes: 0,
                response_bytes: 0,
            };
            table.add_http(series, sample);
            let after = http(&memory)[0].1.duration_ms.buckets[bucket];
            let count = before
                .first()
                .map_or(0, |(_, totals)| totals.duration_ms.buckets[bucket]);
            assert_eq!(after, count + 1, "{microseconds} us");
        }
    }

    #[test]
    fn a_successor_finds_the_series_of_its_slot() {
        let memory = memory();
        let mut first = SeriesTable::take(&memory, 1);
        let (series, _) = first.intern(Kind::Http, &labels("503"));
        let mut second = SeriesTable::take(&memory, 1);
        assert_eq!(second.intern(Kind::Http, &labels("503")).0, series);
        assert_ne!(second.intern(Kind::Http, &labels("504")).0, series);
    }

    #[test]
    fn a_full_table_counts_in_the_overflow_series() {
        let memory = memory();
        let mut table = SeriesTable::take(&memory, 0);
        let mut overflowed = 0;
        for number in 0..SERIES_MAX {
            let code = number.to_string();
            let (series, fits) = table.intern(Kind::Http, &labels(&code));
            overflowed += u32::from(!fits);
            let sample = HttpSample {
                duration_us: 1,
                request_bytes: 1,
                response_bytes: 1,
            };
            table.add_http(series, sample);
        }
        assert!(overflowed >= KINDS.len() as u32);
        let seen = http(&memory);
        let all: u64 = seen.iter().map(|(_, totals)| totals.requests).sum();
        assert_eq!(all, u64::from(SERIES_MAX));
        let (_, rest) = seen.iter().find(|(code, _)| code == "overflow").unwrap();
        assert_eq!(rest.requests, u64::from(overflowed));
    }
}
