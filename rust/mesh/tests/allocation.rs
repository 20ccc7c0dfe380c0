//! Routing and balancing allocate nothing: the calls of the hot path are counted, not believed.
//!
//! The counting allocator is the one place of this crate's tests that needs `unsafe`: the trait of
//! allocators is. It hands every call to the system's and counts per thread.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use meshfast_mesh::{Loads, Random, Request, Snapshot};
use serde_json::{Value, json};

thread_local! {
    /// Constant and without a destructor, so that reaching it never allocates.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call goes to `System` with the arguments it came with.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`; `pointer` came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract of `realloc`; `pointer` came from `System`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// How often `work` allocates.
fn allocations(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.with(Cell::get);
    work();
    ALLOCATIONS.with(Cell::get) - before
}

struct Get {
    authority: String,
    path: &'static str,
    user: &'static str,
}

impl Request for Get {
    fn method(&self) -> &[u8] {
        b"GET"
    }

    fn path(&self) -> &[u8] {
        self.path.as_bytes()
    }

    fn authority(&self) -> &[u8] {
        self.authority.as_bytes()
    }

    fn scheme(&self) -> &[u8] {
        b"http"
    }

    fn header_values(&self, name: &str, each: &mut dyn FnMut(&[u8]) -> bool) {
        if name == "x-user" {
            each(self.user.as_bytes());
        }
    }
}

struct Busy;

impl Loads for Busy {
    fn active(&self, slot: u32) -> u32 {
        slot % 7
    }

    fn available(&self, slot: u32) -> bool {
        slot != 0 && slot != 8
    }
}

fn snapshot(balancer: &str) -> Snapshot {
    let workload = json!({"name": "w", "namespace": "n", "app": "w", "revision": "v1"});
    let endpoints: Value = (0..20)
        .map(|slot| {
            json!({"slot": slot, "address": format!("10.0.0.1:{}", slot + 1),
                   "weight": 1 + slot % 4, "workload": workload})
        })
        .collect();
    let conditions = json!([
        {"uri": {"prefix": "/API/"}, "ignore_uri_case": true, "method": {"exact": "GET"},
         "headers": [{"name": "x-user", "match": {"exact": "ann"}}],
         "query_params": [{"name": "q", "match": {"prefix": "v"}}]},
        {"uri": {"regex": "/v[0-9]+/.*"}}]);
    let destinations = json!([{"cluster": "c", "weight": 90}, {"cluster": "d", "weight": 10}]);
    let virtual_hosts: Value = (0..200)
        .map(|at| {
            json!({"name": format!("h{at}"),
                   "domains": [format!("s{at}.mesh"), format!("*.s{at}.mesh"), format!("s{at}.*")],
                   "routes": [{"name": "r", "matches": conditions, "destinations": destinations}]})
        })
        .collect();
    let service = json!({"host": "s", "name": "s", "namespace": "n"});
    let cluster = |name: &str, endpoints: Value| {
        json!({"name": name, "service": service, "subset": "", "balancer": balancer,
               "connect_timeout_ms": 1, "idle_timeout_ms": 1, "endpoints": endpoints})
    };
    let document = json!({
        "version": 1, "generation": 1, "workload": workload,
        "listeners": [
            {"name": "http", "direction": "outbound", "protocol": "HTTP",
             "virtual_hosts": virtual_hosts},
            {"name": "tcp", "direction": "outbound", "protocol": "TCP",
             "tcp_routes": [{"name": "t", "destinations": destinations}]}],
        "clusters": [cluster("c", endpoints), cluster("d", json!([]))]});
    Snapshot::from_document(document.to_string().as_bytes()).unwrap()
}

#[test]
fn the_count_sees_an_allocation() {
    assert!(allocations(|| drop(std::hint::black_box(Box::new(1)))) > 0);
}

#[test]
fn routing_allocates_nothing() {
    let snapshot = snapshot("RANDOM");
    let get = |authority: &str, path, user| Get {
        authority: authority.to_owned(),
        path,
        user,
    };
    let requests = [
        get("s7.mesh", "/api/x?a=1&q=v2", "ann"),
        get("A.S19.Mesh:8080", "/v2/cart", "bob"),
        get("s150.local.", "/v2/cart", "bob"),
        get("[2001:db8::1]:443", "/", "bob"),
        get("s7.mesh", "/nothing", "bob"),
        get("nowhere", "/", ""),
    ];
    let mut random = Random::new(1);
    let mut routed = 0;
    let mut all = || {
        for request in &requests {
            routed += u32::from(snapshot.route(0, request, &mut random).is_ok());
            routed += u32::from(snapshot.route_tcp(1, &mut random).is_ok());
        }
    };
    // A regular expression makes its cache on its first match in a thread.
    all();
    assert_eq!(allocations(|| (0..100).for_each(|_| all())), 0);
    assert_eq!(routed, 101 * (3 + 6));
}

#[test]
fn picking_allocates_nothing() {
    for balancer in ["LEAST_REQUEST", "RANDOM", "ROUND_ROBIN"] {
        let snapshot = snapshot(balancer);
        let (mut random, mut turn) = (Random::new(1), 0);
        let mut picked = 0;
        let mut pick = |exclude: &[u32]| {
            let index = snapshot.clusters[0].pick(&Busy, &mut random, exclude, &mut turn);
            picked += u32::from(index.is_some());
        };
        let counted = allocations(|| {
            for _ in 0..1000 {
                pick(&[]);
                pick(&[1, 2, 4]);
            }
        });
        assert_eq!(counted, 0, "{balancer}");
        assert_eq!(picked, 2000, "{balancer}");
    }
}
