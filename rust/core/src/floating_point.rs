//! The processor's floating-point settings while an operation computes.
//!
//! A thread may have been told to flush subnormal numbers to zero (`torch.set_flush_denormal`), or to round otherwise.
//! Ranks would then compute different bits from the same data. So an operation computes with the settings that every
//! thread starts with, and the caller has his own back when it ends, however it ends. Signal handlers that run while it
//! waits are the caller's code: they have his settings, and may change them.

use std::hint::black_box;
use std::marker::PhantomData;

/// The time in which a thread computes with the default settings. Ends when this is dropped.
#[derive(Debug)]
pub(crate) struct DefaultSettings {
    callers: u32,
    /// They are this thread's.
    _thread: PhantomData<*const ()>,
}

impl DefaultSettings {
    /// Sets them, and keeps the caller's.
    pub fn enter() -> Self {
        let callers = processor::read();
        set_default(callers);
        Self { callers, _thread: PhantomData }
    }

    /// Runs `work`, which is the caller's, with his settings. What it makes of them is what he gets back.
    pub fn suspended<T>(&mut self, work: impl FnOnce() -> T) -> T {
        self.restore();
        let result = work();
        self.callers = processor::read();
        set_default(self.callers);
        result
    }

    fn restore(&self) {
        if !is_default(self.callers) {
            processor::write(self.callers);
        }
    }
}

impl Drop for DefaultSettings {
    fn drop(&mut self) {
        self.restore();
    }
}

/// `value` as a float32, rounded by the default settings.
pub fn narrow(value: f64) -> f32 {
    let _settings = DefaultSettings::enter();
    // The compiler moves no conversion across what changes settings, as these are opaque to it.
    black_box(black_box(value) as f32)
}

fn set_default(found: u32) {
    // Writing takes longer than reading, and nearly all callers have these settings.
    if !is_default(found) {
        processor::write(processor::DEFAULT);
    }
}

fn is_default(settings: u32) -> bool {
    settings & processor::SETTINGS == processor::DEFAULT
}

#[cfg(target_arch = "x86_64")]
mod processor {
    //! The register MXCSR.

    use std::arch::asm;

    /// To nearest even, no exception raised, subnormal operands and results as they are.
    pub const DEFAULT: u32 = 0x1f80;
    /// All but the flags that say which exceptions there were.
    pub const SETTINGS: u32 = 0xffc0;

    pub fn read() -> u32 {
        let mut settings = 0_u32;
        // SAFETY: stores the register to the variable, and changes nothing else. As the compiler takes it to access any
        // memory, it moves no load or store of an operand across.
        unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut settings, options(nostack, preserves_flags)) };
        settings
    }

    pub fn write(settings: u32) {
        // SAFETY: `settings` is the default, or was read from the register, so no reserved bit is set. What is computed
        // under other settings than the default is the caller's code. As above, nothing is moved across.
        unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const settings, options(nostack, preserves_flags)) };
    }
}

#[cfg(target_arch = "aarch64")]
mod processor {
    //! The register FPCR, whose upper half has no meaning yet.

    use std::arch::asm;

    /// To nearest even, no exception trapped, subnormal operands and results as they are.
    pub const DEFAULT: u32 = 0;
    /// There are no flags in it.
    pub const SETTINGS: u32 = !0;

    pub fn read() -> u32 {
        let settings: u64;
        // SAFETY: reads the register, and changes nothing. As the compiler takes it to access any memory, it moves no
        // load or store of an operand across.
        unsafe { asm!("mrs {}, fpcr", out(reg) settings, options(nostack, preserves_flags)) };
        settings as u32
    }

    pub fn write(settings: u32) {
        // SAFETY: `settings` is the default, or was read from the register. What is computed under other settings than
        // the default is the caller's code. As above, nothing is moved across.
        unsafe { asm!("msr fpcr, {}", in(reg) u64::from(settings), options(nostack, preserves_flags)) };
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod processor {
    //! Nothing is known of such settings.

    pub const DEFAULT: u32 = 0;
    pub const SETTINGS: u32 = !0;

    pub fn read() -> u32 {
        DEFAULT
    }

    pub fn write(_settings: u32) {}
}

#[cfg(all(test, any(target_arch = "x86_64", target_arch = "aarch64")))]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    /// Subnormal operands and results as zeros, and rounding upwards.
    #[cfg(target_arch = "x86_64")]
    const OTHER: u32 = processor::DEFAULT | 0x8040 | 0x4000;
    #[cfg(target_arch = "aarch64")]
    const OTHER: u32 = 1 << 24 | 1 << 22;

    /// Half of the smallest normal number: 0 where subnormal numbers are flushed.
    fn half() -> f32 {
        black_box(f32::MIN_POSITIVE) * black_box(0.5)
    }

    /// Runs `work` on a thread with settings of its own, which it must leave as they were, or as `left`.
    fn with_other_settings(left: u32, work: impl FnOnce() + Send) {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                processor::write(OTHER);
                work();
                let found = processor::read();
                processor::write(processor::DEFAULT);
                assert_eq!(found & processor::SETTINGS, left, "the caller's settings are not what they were");
            });
            thread.join().expect("the thread's assertions hold");
        });
    }

    #[test]
    fn an_operation_computes_with_the_default_settings_and_gives_the_callers_back() {
        with_other_settings(OTHER, || {
            let before = half();
            let operation = DefaultSettings::enter();
            let within = half();
            drop(operation);
            let after = half();
            assert_eq!((before, within.to_bits(), after), (0.0, 1 << 22, 0.0));
        });
    }

    #[test]
    fn a_scalar_is_rounded_by_the_default_settings() {
        with_other_settings(OTHER, || {
            let (subnormal, upward) = (narrow(1e-40), narrow(1.0 + f64::EPSILON));
            assert_eq!((subnormal.to_bits(), upward.to_bits()), (0x1_16c2, 0x3f80_0000));
        });
    }

    #[test]
    fn an_operation_that_panics_gives_them_back_too() {
        with_other_settings(OTHER, || {
            let panicked = catch_unwind(AssertUnwindSafe(|| {
                let _operation = DefaultSettings::enter();
                panic!("on purpose");
            }));
            assert!(panicked.is_err());
        });
    }

    #[test]
    fn a_handler_has_the_callers_settings_and_may_change_them() {
        with_other_settings(processor::DEFAULT, || {
            let mut operation = DefaultSettings::enter();
            let seen = operation.suspended(half);
            let within = half();
            operation.suspended(|| processor::write(processor::DEFAULT));
            assert_eq!((seen, within.to_bits(), half().to_bits()), (0.0, 1 << 22, 1 << 22));
        });
    }

    #[test]
    fn a_handler_that_changes_the_default_settings_changes_the_callers_and_no_result() {
        with_other_settings(OTHER, || {
            processor::write(processor::DEFAULT);
            let mut operation = DefaultSettings::enter();
            operation.suspended(|| processor::write(OTHER));
            assert_eq!(half().to_bits(), 1 << 22);
        });
    }
}
