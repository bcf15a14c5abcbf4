//! Owns repeatable randomness: everything random in a run follows from one number.

/// A SplitMix64 generator, which is small and good enough to shuffle pods.
#[derive(Clone)]
pub(crate) struct Chance(u64);

impl Chance {
    /// A separate sequence for each part of a run, so that a part can draw more numbers without changing the others.
    pub(crate) fn of(seed: u64, part: &str) -> Chance {
        let salt = part.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3) // FNV-1a
        });
        Chance(seed ^ salt)
    }

    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `low..=high`.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.draw() % (high - low + 1)
    }

    /// True in `chances` of 100 draws.
    pub(crate) fn percent(&mut self, chances: u64) -> bool {
        self.draw() % 100 < chances
    }

    /// One of the elements.
    pub(crate) fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[usize::try_from(self.draw() % all.len() as u64).expect("an index")]
    }

    /// Shuffles the elements.
    pub(crate) fn shuffle<T>(&mut self, all: &mut [T]) {
        for last in (1..all.len()).rev() {
            all.swap(last, usize::try_from(self.draw() % (last as u64 + 1)).expect("an index"));
        }
    }
}

/// The seed in `VRAMGUARD_SEED`, or one from the clock. It is printed, so that a run can be repeated.
pub(crate) fn seed() -> u64 {
    let given = std::env::var("VRAMGUARD_SEED").ok();
    let seed = match given {
        Some(text) => text.parse().unwrap_or_else(|e| panic!("VRAMGUARD_SEED={text:?}: {e}")),
        None => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
            now.as_secs() ^ u64::from(now.subsec_nanos())
        }
    };
    println!("VRAMGUARD_SEED={seed}");
    seed
}
