//! Random numbers and hash maps that a simulation can repeat.
//!
//! Strangers choose what many maps are asked for, so the keys of their hashes are random: nobody can aim at one bucket.
//! The order of such a map is another in every run, and whoever walks along it, or drops it, wakes tasks in that
//! order. In a simulated world the keys are fixed and numbers come from the world's seed, so the seed decides everything.

/// A hash map; see the module.
pub type HashMap<K, V> = std::collections::HashMap<K, V, Keys>;

/// A hash set; see the module.
pub type HashSet<T> = std::collections::HashSet<T, Keys>;

/// The keys of a map's hash.
#[cfg(not(test))]
pub type Keys = std::hash::RandomState;

#[cfg(test)]
pub use simulated::Keys;

/// A number that nobody outside can guess, for other purposes than secrets.
pub fn number() -> u64 {
    #[cfg(test)]
    if crate::clock::held::is_held() {
        return fastrand::u64(..);
    }
    // The keys of the standard hasher come from the system's random numbers.
    std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0)
}

#[cfg(test)]
mod simulated {
    use std::hash::{BuildHasher, DefaultHasher, RandomState};

    /// Random, unless the map is made in a simulated world.
    #[derive(Debug, Clone)]
    pub struct Keys(Option<RandomState>);

    impl Default for Keys {
        fn default() -> Self {
            Self((!crate::clock::held::is_held()).then(RandomState::new))
        }
    }

    impl BuildHasher for Keys {
        type Hasher = DefaultHasher;

        fn build_hasher(&self) -> DefaultHasher {
            self.0.as_ref().map_or_else(DefaultHasher::new, BuildHasher::build_hasher)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The order of a map, and a number.
    fn drawn() -> (Vec<u32>, u64) {
        (HashSet::from_iter(0..1000).into_iter().collect(), number())
    }

    #[test]
    fn a_simulated_world_draws_the_same_again_and_no_other_does() {
        let draw = |seed: Option<u64>| {
            // A thread of its own: what is held stays held there only.
            let draw = move || {
                if let Some(seed) = seed {
                    crate::clock::held::hold(Some(jiff::Timestamp::UNIX_EPOCH));
                    fastrand::seed(seed);
                }
                drawn()
            };
            std::thread::spawn(draw).join().unwrap()
        };
        assert_eq!(draw(Some(1)), draw(Some(1)));
        assert_ne!(draw(Some(1)).1, draw(Some(2)).1);
        let (one, other) = (draw(None), draw(None));
        assert_ne!(one.0, other.0, "the order of a map can be guessed");
        assert_ne!(one.1, other.1);
    }
}
