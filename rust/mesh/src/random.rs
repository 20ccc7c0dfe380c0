//! A small pseudo-random generator for load balancing: xoshiro256++ (Blackman and Vigna, 2019).
//!
//! Fast, seeded, repeatable; not for secrets. Each worker owns one and seeds it from the system.

/// A seeded generator; the same seed gives the same numbers.
#[derive(Clone, Debug)]
pub struct Random {
    /// Never all zero: the generator would stay there.
    state: [u64; 4],
}

impl Random {
    /// A generator whose state is spread from `seed`; every seed is a good one.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut spread = SplitMix(seed);
        // SplitMix64 is a bijection of its counter, so at most one of four outputs is zero.
        Self {
            state: [spread.next(), spread.next(), spread.next(), spread.next()],
        }
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        let [a, b, c, d] = self.state;
        let result = a.wrapping_add(d).rotate_left(23).wrapping_add(a);
        let (c, d) = (c ^ a, d ^ b);
        self.state = [a ^ d, b ^ c, c ^ (b << 17), d.rotate_left(45)];
        result
    }

    /// A number in `0..limit`, each equally likely; 0 when `limit` is 0.
    ///
    /// The high word of a 64 × 64 bit product, with the few products that would favour some
    /// numbers thrown away (Lemire, 2019): exact shares, and hardly ever a division.
    pub fn below(&mut self, limit: u64) -> u64 {
        let mut product = u128::from(self.next_u64()) * u128::from(limit);
        if (product as u64) < limit {
            let surplus = limit.wrapping_neg() % limit;
            while (product as u64) < surplus {
                product = u128::from(self.next_u64()) * u128::from(limit);
            }
        }
        (product >> 64) as u64
    }
}

/// SplitMix64 (Steele, Lea and Flood, 2014): turns one seed into the words of a larger state.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_published_recurrence() {
        // Worked out by hand from the state {1, 2, 3, 4}: rotl(1 + 4, 23) + 1, then the state is
        // {7, 0, 2^18 + 2, 6 * 2^45}, whose output is rotl(7 + 6 * 2^45, 23) + 7.
        let mut random = Random {
            state: [1, 2, 3, 4],
        };
        assert_eq!(random.next_u64(), 41_943_041);
        assert_eq!(random.state, [7, 0, 262_146, 6 << 45]);
        assert_eq!(random.next_u64(), 58_720_359);
    }

    #[test]
    fn repeats_itself_for_the_same_seed_and_differs_for_another() {
        let draw = |seed| {
            let mut random = Random::new(seed);
            [random.next_u64(), random.next_u64(), random.next_u64()]
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        assert_ne!(draw(0), [0, 0, 0]);
    }

    #[test]
    fn stays_below_the_limit_even_at_the_edges() {
        let mut random = Random::new(1);
        for limit in [1, 2, 3, 10, 1 << 32, u64::MAX / 2 + 2, u64::MAX] {
            for _ in 0..1000 {
                assert!(random.below(limit) < limit);
            }
        }
        assert_eq!(random.below(0), 0);
    }

    #[test]
    fn throws_away_what_would_favour_some_numbers() {
        // Of 2^64 words and this limit, every third number would come from two words, the others
        // from one: half of the draws instead of a third.
        let mut random = Random::new(9);
        let thirds = (0..9000)
            .filter(|_| random.below(3 << 62).is_multiple_of(3))
            .count();
        // Five standard deviations of Binomial(9000, 1/3): 5 * sqrt(2000) = 224.
        assert!(thirds.abs_diff(3000) < 224, "{thirds}");
    }

    #[test]
    fn gives_every_number_below_a_limit_its_share() {
        let mut random = Random::new(42);
        let (draws, limit) = (60_000u64, 6u64);
        let mut counts = [0u64; 6];
        for _ in 0..draws {
            counts[random.below(limit) as usize] += 1;
        }
        // Five standard deviations of Binomial(60000, 1/6): 5 * sqrt(60000 * 5 / 36) = 456.
        for count in counts {
            assert!(count.abs_diff(draws / limit) < 456, "{counts:?}");
        }
    }
}
