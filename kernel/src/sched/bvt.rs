//! Borrowed Virtual Time as arithmetic: no clock, no queue, no vCPU. Given how long a
//! vCPU ran, its account says how far its virtual time moved and how long it may run on.
//!
//! The paper's letters (Duda and Cheriton, SOSP 1999): `A` [`Account::actual_vt`], `E`
//! [`Account::effective_vt`], `W` [`Params::warp`], `L` [`Params::warp_limit`], `U`
//! [`Params::unwarp`], `C` [`Params::allowance`]; SVT, the scheduler virtual time, is the least `A`
//! of the runnable vCPUs.

use bulkhead_abi::{Errno, Ns, control::SchedParams};
use core::num::NonZero;

/// Virtual nanoseconds: real ones for a vCPU of [`DEFAULT_WEIGHT`], fewer for a heavier one.
///
/// It wraps: only differences mean something, and those between runnable vCPUs stay far
/// below 2^63, for all of them lie within a warp and an allowance of each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VirtTime(u64);

impl VirtTime {
    /// A point in virtual time, for a fresh queue and for reports.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The number, for reports.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Virtual ns from `earlier` to here; negative when here is before it.
    pub const fn since(self, earlier: Self) -> i64 {
        self.0.wrapping_sub(earlier.0) as i64
    }

    /// Whether this comes before `other`.
    pub const fn before(self, other: Self) -> bool {
        self.since(other) < 0
    }
}

/// A share of the CPU: twice the weight, twice the time.
pub type Weight = NonZero<u16>;

/// Its virtual time is real time.
pub const DEFAULT_WEIGHT: Weight = Weight::new(256).unwrap();

/// How Dom0 wants a vCPU treated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Params {
    pub weight: Weight,
    /// `W`: how far a woken vCPU goes back, in virtual ns; 0: it never warps.
    pub warp: Ns,
    /// `L`: longest run in one warp; 0: no limit.
    pub warp_limit: Ns,
    /// `U`: least time from the end of a warp to the next.
    pub unwarp: Ns,
    /// `C`: how long it runs on though another has an equal claim.
    pub allowance: Ns,
}

/// Longest warp, limit, unwarp time and allowance that may be asked for: an hour.
pub const MAX_SPAN: Ns = Ns::new(3_600_000_000_000);
/// Least allowance: with less, vCPUs of equal claim would do little but switch.
pub const MIN_ALLOWANCE: Ns = Ns::new(50_000);

impl Params {
    /// Equal share, no warp, 2 ms of allowance.
    pub const DEFAULT: Self = Self {
        weight: DEFAULT_WEIGHT,
        warp: Ns::new(0),
        warp_limit: Ns::new(0),
        unwarp: Ns::new(0),
        allowance: Ns::new(2_000_000),
    };

    /// What Dom0 itself starts with: it answers others, so it warps, and it can not keep the CPU
    /// by doing so.
    pub const DOM0: Self =
        Self { warp: Ns::new(20_000_000), warp_limit: Ns::new(10_000_000), ..Self::DEFAULT };

    /// Checks what came from outside. An allowance of 0 means the default; less than
    /// [`MIN_ALLOWANCE`] is raised to it.
    ///
    /// Errors: `EINVAL` for a weight outside 1..=65535 or a span above [`MAX_SPAN`].
    pub fn checked(asked: &SchedParams) -> Result<Self, Errno> {
        let weight = u16::try_from(asked.weight).ok().and_then(Weight::new);
        let spans = [asked.warp_ns, asked.warp_limit_ns, asked.unwarp_ns, asked.allowance_ns];
        let [warp, warp_limit, unwarp, allowance] = spans.map(Ns::new);
        if spans.iter().any(|&span| span > MAX_SPAN.get()) {
            return Err(Errno::EINVAL);
        }
        let allowance = match asked.allowance_ns {
            0 => Self::DEFAULT.allowance,
            _ => allowance.max(MIN_ALLOWANCE),
        };
        Ok(Self { weight: weight.ok_or(Errno::EINVAL)?, warp, warp_limit, unwarp, allowance })
    }

    /// Real ns as virtual ns of this weight, rounded up.
    fn virtual_of(&self, real: Ns) -> u64 {
        scale(real.get(), DEFAULT_WEIGHT, self.weight)
    }

    /// Virtual ns as real ns of this weight, rounded up.
    fn real_of(&self, virtual_ns: u64) -> Ns {
        Ns::new(scale(virtual_ns, self.weight, DEFAULT_WEIGHT))
    }
}

/// `ns * by / over`, rounded up.
fn scale(ns: u64, by: Weight, over: Weight) -> u64 {
    let scaled = u128::from(ns) * u128::from(by.get());
    u64::try_from(scaled.div_ceil(over.get().into())).unwrap_or(u64::MAX)
}

/// Whether a vCPU is back in virtual time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Warp {
    /// Not warped; may warp again from this time on.
    Off { again_at: Ns },
    /// Warped, and has run this long in it.
    On { ran: Ns },
}

/// One vCPU's standing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Account {
    actual: VirtTime,
    /// Of a virtual ns, in units of 1/weight: no time is lost to rounding.
    remainder: u64,
    warp: Warp,
}

impl Account {
    /// A newcomer: it stands where the others are.
    pub const fn new(svt: VirtTime) -> Self {
        Self { actual: svt, remainder: 0, warp: Warp::Off { again_at: Ns::new(0) } }
    }

    /// `A`: how much CPU it has had, by its weight.
    pub const fn actual_vt(&self) -> VirtTime {
        self.actual
    }

    /// `E`: what the vCPUs are ordered by.
    pub const fn effective_vt(&self, params: &Params) -> VirtTime {
        match self.warp {
            Warp::On { .. } => VirtTime(self.actual.0.wrapping_sub(params.warp.get())),
            Warp::Off { .. } => self.actual,
        }
    }

    /// It ran for `ran` until `now`: virtual time advances, and a warp that has reached its limit
    /// ends.
    pub fn ran(&mut self, params: &Params, ran: Ns, now: Ns) {
        let weight = u128::from(params.weight.get());
        let scaled = u128::from(ran.get()) * u128::from(DEFAULT_WEIGHT.get());
        let scaled = scaled + u128::from(self.remainder);
        // Both fit: the quotient wraps by design, the remainder is below the weight.
        self.actual = VirtTime(self.actual.0.wrapping_add((scaled / weight) as u64));
        self.remainder = (scaled % weight) as u64;
        if let Warp::On { ran: before } = &mut self.warp {
            *before = before.plus(ran);
            if params.warp_limit.get() != 0 && *before >= params.warp_limit {
                self.end_warp(params, now);
            }
        }
    }

    /// It became runnable: sleeping earns no credit, so it is brought up to `svt`, and it warps if
    /// it may.
    pub fn woke(&mut self, params: &Params, svt: VirtTime, now: Ns) {
        // Further ahead than any vCPU can get: it slept so long that the clock went round.
        let ahead = self.actual.since(svt);
        if !(0..=1 << 62).contains(&ahead) {
            self.actual = svt;
            self.remainder = 0;
        }
        if let Warp::Off { again_at } = self.warp
            && params.warp.get() != 0
            && now >= again_at
        {
            self.warp = Warp::On { ran: Ns::new(0) };
        }
    }

    /// Ends a warp, if it is in one: when it blocks, with the work that the warp was for.
    pub fn end_warp(&mut self, params: &Params, now: Ns) {
        if matches!(self.warp, Warp::On { .. }) {
            self.warp = Warp::Off { again_at: now.plus(params.unwarp) };
        }
    }

    /// Weight or warp changed. What it has run stands; a warp ends where none is allowed any more.
    pub fn params_changed(&mut self, params: &Params, now: Ns) {
        self.remainder = 0;
        if params.warp.get() == 0 {
            self.end_warp(params, now);
        }
    }

    /// Whether this vCPU, now running, must yield to one whose effective virtual time is `rival`.
    pub fn yields_to(&self, params: &Params, rival: VirtTime) -> bool {
        let ahead = self.effective_vt(params).since(rival);
        ahead > 0 && ahead as u64 >= params.virtual_of(params.allowance)
    }

    /// How long it may run before something is to be decided: until it is ahead of `rival` by the
    /// allowance, or its warp is used up. `None`: nothing to decide. Never below
    /// [`MIN_ALLOWANCE`], so that no choice of parameters makes a storm of timer interrupts.
    pub fn slice(&self, params: &Params, rival: Option<VirtTime>) -> Option<Ns> {
        let to_rival = rival.map(|rival| {
            let lag = rival.since(self.effective_vt(params));
            params.real_of(params.virtual_of(params.allowance).saturating_add_signed(lag))
        });
        let to_limit = match self.warp {
            Warp::On { ran } if params.warp_limit.get() != 0 => Some(params.warp_limit.minus(ran)),
            _ => None,
        };
        let least = to_rival.into_iter().chain(to_limit).min()?;
        Some(least.max(MIN_ALLOWANCE))
    }
}
