//! Tests of the policies, one choice at a time and by their shares.
#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::collections::HashSet;

use super::Loads;
use crate::example::{self, tally};
use crate::random::Random;
use crate::snapshot::{Cluster, Snapshot};

const BALANCERS: [&str; 3] = ["LEAST_REQUEST", "RANDOM", "ROUND_ROBIN"];

/// Active requests by slot, and the slots that are not available.
#[derive(Default)]
struct Table {
    active: RefCell<Vec<u32>>,
    gone: HashSet<u32>,
}

impl Table {
    fn of(active: &[u32]) -> Self {
        Self {
            active: RefCell::new(active.to_vec()),
            gone: HashSet::new(),
        }
    }

    fn without(gone: &[u32]) -> Self {
        Self {
            active: RefCell::default(),
            gone: gone.iter().copied().collect(),
        }
    }
}

impl Loads for Table {
    fn active(&self, slot: u32) -> u32 {
        self.active
            .borrow()
            .get(slot as usize)
            .copied()
            .unwrap_or(0)
    }

    fn available(&self, slot: u32) -> bool {
        !self.gone.contains(&slot)
    }
}

/// `count` choices in a row.
fn choices(cluster: &Cluster, loads: &Table, exclude: &[u32], count: usize) -> Vec<Option<usize>> {
    let (mut random, mut turn) = (Random::new(7), 0);
    (0..count)
        .map(|_| cluster.pick(loads, &mut random, exclude, &mut turn))
        .collect()
}

fn only(snapshot: &Snapshot) -> &Cluster {
    &snapshot.clusters[0]
}

#[test]
fn nothing_usable_gives_nothing() {
    for balancer in BALANCERS {
        for weights in [&[][..], &[1, 1, 1], &[1, 2, 3]] {
            let snapshot = example::cluster(balancer, weights);
            let gone = Table::without(&[0, 1, 2]);
            assert_eq!(choices(only(&snapshot), &gone, &[], 20), [None; 20]);
            let none = choices(only(&snapshot), &Table::default(), &[2, 0, 1], 20);
            assert_eq!(none, [None; 20], "{balancer} {weights:?}");
        }
    }
}

#[test]
fn a_single_usable_endpoint_takes_all() {
    for balancer in BALANCERS {
        for weights in [
            &[1][..],
            &[1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
            &[1, 1_000_000, 1_000_000],
        ] {
            let snapshot = example::cluster(balancer, weights);
            let gone: Vec<u32> = (1..weights.len() as u32).collect();
            for (gone, tried) in [(&gone[..], &[][..]), (&[], &gone), (&gone, &gone)] {
                let chosen = choices(only(&snapshot), &Table::without(gone), tried, 20);
                assert_eq!(chosen, [Some(0); 20], "{balancer} {weights:?}");
            }
        }
    }
}

#[test]
fn excluded_and_unavailable_endpoints_are_never_chosen() {
    for balancer in BALANCERS {
        for weights in [[1; 6], [5, 4, 3, 2, 1, 7]] {
            let snapshot = example::cluster(balancer, &weights);
            let chosen = choices(only(&snapshot), &Table::without(&[0, 3]), &[5, 1], 500);
            let chosen: HashSet<_> = chosen.into_iter().map(Option::unwrap).collect();
            assert_eq!(chosen, HashSet::from([2, 4]), "{balancer} {weights:?}");
        }
    }
}

#[test]
fn least_request_never_takes_the_busier_of_two() {
    let snapshot = example::cluster("LEAST_REQUEST", &[1, 1]);
    let chosen = choices(only(&snapshot), &Table::of(&[3, 2]), &[], 1000);
    assert!(chosen.iter().all(|&index| index == Some(1)));
}

#[test]
fn least_request_never_takes_the_busiest_of_many() {
    let snapshot = example::cluster("LEAST_REQUEST", &[1, 1, 1, 1, 1]);
    let chosen = choices(only(&snapshot), &Table::of(&[1, 9, 1, 1, 1]), &[], 5000);
    let counts = tally(chosen.into_iter().map(Option::unwrap));
    assert!(!counts.contains_key(&1));
    // The other four are equal: Binomial(5000, 1/4), five standard deviations = 153.
    assert!(
        counts.values().all(|count| count.abs_diff(1250) < 153),
        "{counts:?}"
    );
}

#[test]
fn least_request_compares_load_per_weight() {
    let snapshot = example::cluster("LEAST_REQUEST", &[10, 30]);
    for (active, expected) in [([1, 2], 1), ([2, 7], 0), ([0, 1], 0), ([u32::MAX, 1], 1)] {
        let chosen = choices(only(&snapshot), &Table::of(&active), &[], 200);
        assert!(
            chosen.iter().all(|&index| index == Some(expected)),
            "{active:?}"
        );
    }
    // A tie goes by weight: 1/10 and 3/30 are the same load.
    let counts = tally(choices(only(&snapshot), &Table::of(&[1, 3]), &[], 4000).into_iter());
    assert!(counts[&Some(1)].abs_diff(3000) < 137, "{counts:?}");
}

#[test]
fn an_idle_cluster_is_served_by_weight() {
    for balancer in BALANCERS {
        let weights = [10, 20, 30, 40];
        let snapshot = example::cluster(balancer, &weights);
        let counts = tally(choices(only(&snapshot), &Table::default(), &[], 10_000).into_iter());
        for (index, weight) in weights.into_iter().enumerate() {
            // Five standard deviations of Binomial(10000, p), at most 5 * sqrt(2400) = 245.
            let count = counts[&Some(index)];
            assert!(count.abs_diff(100 * weight) < 245, "{balancer} {counts:?}");
        }
    }
}

#[test]
fn shares_of_the_usable_stay_by_weight_when_most_are_gone() {
    for balancer in ["LEAST_REQUEST", "RANDOM"] {
        let mut weights = [100; 40];
        (weights[17], weights[31]) = (10, 30);
        let snapshot = example::cluster(balancer, &weights);
        let gone: Vec<u32> = (0..40).filter(|&slot| slot != 17 && slot != 31).collect();
        let counts = tally(choices(only(&snapshot), &Table::without(&gone), &[], 4000).into_iter());
        assert!(
            counts[&Some(31)].abs_diff(3000) < 137,
            "{balancer} {counts:?}"
        );
    }
}

#[test]
fn round_robin_takes_equal_endpoints_in_order() {
    let snapshot = example::cluster("ROUND_ROBIN", &[5, 5, 5]);
    let chosen = choices(only(&snapshot), &Table::default(), &[], 7);
    assert_eq!(chosen, [0, 1, 2, 0, 1, 2, 0].map(Some));
    let chosen = choices(only(&snapshot), &Table::without(&[1]), &[], 4);
    assert_eq!(chosen, [0, 2, 0, 2].map(Some));
}

#[test]
fn round_robin_is_exact_over_a_round_and_spreads_it() {
    let weights = [50, 10, 30, 10];
    let snapshot = example::cluster("ROUND_ROBIN", &weights);
    let chosen = choices(only(&snapshot), &Table::default(), &[], 1000);
    for round in chosen.chunks(10) {
        let counts = tally(round.iter().copied());
        assert_eq!(
            counts,
            [(Some(0), 5), (Some(1), 1), (Some(2), 3), (Some(3), 1)].into()
        );
    }
    let longest = chosen
        .chunk_by(|one, next| one == next)
        .map(<[_]>::len)
        .max();
    assert!(
        longest <= Some(2),
        "half of the weight came {longest:?} times in a row"
    );
}

#[test]
fn round_robin_survives_a_cursor_from_elsewhere() {
    for weights in [&[1, 1, 1][..], &[1, 2, 3]] {
        let snapshot = example::cluster("ROUND_ROBIN", weights);
        let mut turn = u32::MAX;
        let mut random = Random::new(1);
        let cluster = only(&snapshot);
        let loads = Table::default();
        let round: u32 = weights.iter().sum();
        let counts =
            tally((0..round).map(|_| cluster.pick(&loads, &mut random, &[], &mut turn).unwrap()));
        assert!(
            weights
                .iter()
                .enumerate()
                .all(|(at, weight)| counts[&at] == *weight)
        );
    }
}

#[test]
fn the_heaviest_cluster_that_is_accepted_can_be_served() {
    for balancer in BALANCERS {
        let snapshot = example::cluster(balancer, &[1, u32::MAX - 2, 1]);
        let chosen = choices(only(&snapshot), &Table::without(&[1]), &[], 50);
        assert!(
            chosen
                .iter()
                .all(|&index| index == Some(0) || index == Some(2)),
            "{balancer}"
        );
        let chosen = choices(only(&snapshot), &Table::default(), &[], 50);
        // Round robin begins at the first place of the round, which is endpoint 0's only one.
        assert_eq!(chosen[1..], [Some(1); 49], "{balancer}");
    }
}
