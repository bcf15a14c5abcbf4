//! [`Amounts`]: the memory of one GPU, or of several together. Owns their sums, and where each part of a bar begins.

use crate::capacity::vram::Vram;

/// The memory of one GPU, or of several together. `None` is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// All of it.
    pub total: Option<Vram>,
    /// What the driver and the headroom take.
    pub headroom: Option<Vram>,
    /// What pods can be given.
    pub allocatable: Option<Vram>,
    /// What pods hold.
    pub held: Option<Vram>,
    /// The largest demand that fits now.
    pub free: Option<Vram>,
    /// What is in use, as a node agent reports it.
    pub used: Option<Vram>,
}

impl Amounts {
    /// Several as one. A sum of which one part is not known is not known. What is free is the largest of them: one pod
    /// is on one GPU.
    pub fn together(all: &[Amounts]) -> Amounts {
        let sum = |amount: fn(&Amounts) -> Option<Vram>| all.iter().map(amount).sum::<Option<Vram>>();
        Amounts {
            total: sum(|one| one.total),
            headroom: sum(|one| one.headroom),
            allocatable: sum(|one| one.allocatable),
            held: sum(|one| one.held),
            free: all.iter().filter_map(|one| one.free).max(),
            used: sum(|one| one.used),
        }
    }

    /// By how much what is held exceeds what pods can be given; zero if either is not known.
    pub fn over(&self) -> Vram {
        let over = self.allocatable.zip(self.held).and_then(|(allocatable, held)| allocatable.minus(held).deficit());
        over.unwrap_or_default()
    }

    /// Memory that is neither headroom nor for pods, such as what is used out of band.
    pub fn outside(&self) -> Vram {
        let [total, headroom, allocatable] =
            [self.total, self.headroom, self.allocatable].map(Option::unwrap_or_default);
        total.minus(headroom).minus(allocatable).free()
    }

    /// How many of `of` parts of what pods can be given are held, rounded down; `None` if that is not known or nothing can
    /// be given.
    pub fn held_part(&self, of: u64) -> Option<u64> {
        let (held, allocatable) = (u128::from(self.held?.mib()), u128::from(self.allocatable?.mib()));
        let part = (held * u128::from(of)).checked_div(allocatable)?;
        Some(u64::try_from(part).unwrap_or(u64::MAX))
    }

    /// Where the parts of a bar are: what is kept back, the holders, what is free. A holder of an unknown amount has no
    /// place.
    pub fn layout(&self, holders: impl IntoIterator<Item = Option<Vram>>) -> Layout {
        let start = self.headroom.unwrap_or_default().plus(self.outside());
        let mut at = start;
        let place = |amount: Option<Vram>| {
            let from = at;
            at = at.plus(amount?);
            Some((from, at))
        };
        let holders = holders.into_iter().map(place).collect();
        let (end, held) = (start.plus(self.allocatable.unwrap_or_default()), start.plus(self.held.unwrap_or_default()));
        // What is used begins where the driver's part ends, so that its end can be compared with that of what is held.
        let headroom = self.headroom.unwrap_or_default();
        let used = self.used.map(|used| (headroom, headroom.plus(used)));
        let extent = end.max(held).max(used.map(|(_, end)| end).unwrap_or_default());
        Layout { start, holders, end, held, used, extent }
    }
}

/// Places in a bar, as amounts from its left edge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Where the holders begin.
    pub start: Vram,
    /// Where each holder begins and ends.
    pub holders: Vec<Option<(Vram, Vram)>>,
    /// Where what pods can be given ends.
    pub end: Vram,
    /// Where what is held ends.
    pub held: Vram,
    /// Where what is in use begins and ends; `None` if that is not known.
    pub used: Option<(Vram, Vram)>,
    /// Where the last part ends.
    pub extent: Vram,
}

/// The sum of amounts.
pub fn sum(amounts: impl IntoIterator<Item = Vram>) -> Vram {
    amounts.into_iter().sum()
}

/// The sum of amounts; `None` if one of them is not known.
pub fn sum_of_known(amounts: impl IntoIterator<Item = Option<Vram>>) -> Option<Vram> {
    amounts.into_iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(total: u64, headroom: u64, allocatable: u64, held: Option<u64>) -> Amounts {
        let known = |mib| Some(Vram::from_mib(mib));
        Amounts {
            total: known(total),
            headroom: known(headroom),
            allocatable: known(allocatable),
            held: held.map(Vram::from_mib),
            free: None,
            used: None,
        }
    }

    #[test]
    fn a_sum_of_which_one_part_is_not_known_is_not_known() {
        let free = |mib| Amounts { free: Some(Vram::from_mib(mib)), ..gpu(100, 4, 96, Some(50)) };
        let all = Amounts::together(&[free(46), free(10), gpu(100, 4, 96, None)]);
        assert_eq!((all.total, all.held, all.used), (Some(Vram::from_mib(300)), None, None));
        assert_eq!(all.free, Some(Vram::from_mib(46)), "one pod is on one GPU");
        assert_eq!(all.over(), Vram::ZERO, "what is not known is not over");
    }

    #[test]
    fn the_parts_of_a_bar_follow_each_other_and_go_past_its_end_if_it_is_overcommitted() {
        let bar = gpu(100, 4, 90, Some(120));
        let mib = Vram::from_mib;
        assert_eq!((bar.outside(), bar.over()), (mib(6), mib(30)));
        let layout = bar.layout([Some(mib(50)), None, Some(mib(70))]);
        assert_eq!(layout.holders, [Some((mib(10), mib(60))), None, Some((mib(60), mib(130)))]);
        assert_eq!((layout.start, layout.end, layout.held, layout.extent), (mib(10), mib(100), mib(130), mib(130)));
        let used = Amounts { used: Some(mib(200)), ..bar };
        assert_eq!((used.layout([]).used, used.layout([]).extent), (Some((mib(4), mib(204))), mib(204)));
        assert_eq!(layout.used, None, "not known is no part");
    }
}
