//! The entropy of a simulation: whatever asks the system for random bytes on its thread gets them from the seed.
//!
//! quinn, rustls and the daemon are given theirs. chitchat, the standard library's hash maps and tokio's `select!` ask
//! the C library's `getrandom`, which is why this one function stands in for it. A thread that was not seeded gets what
//! the kernel gives, so that nothing else in the process becomes predictable.

use std::cell::RefCell;
use std::fs::File;
use std::io::Read;

use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};

thread_local! {
    static SOURCE: RefCell<Option<ChaCha20Rng>> = const { RefCell::new(None) };
}

/// Makes everything random on this thread follow from a seed.
pub(super) fn sow(seed: [u8; 32]) {
    SOURCE.with(|source| *source.borrow_mut() = Some(ChaCha20Rng::from_seed(seed)));
}

/// Fills a buffer from this thread's seed; returns whether it has one.
fn draw(bytes: &mut [u8]) -> bool {
    let drawn = SOURCE.try_with(|source| match source.borrow_mut().as_mut() {
        Some(random) => {
            random.fill_bytes(bytes);
            true
        }
        None => false,
    });
    drawn.unwrap_or(false)
}

/// Fills a buffer with random bytes; returns whether there were any.
pub(super) fn fill(bytes: &mut [u8]) -> bool {
    draw(bytes) || File::open("/dev/urandom").and_then(|mut kernel| kernel.read_exact(bytes)).is_ok()
}

/// Takes the place of the C library's function of that name, in this program alone.
#[expect(unsafe_code, reason = "the buffer comes from C, and the name is the C library's")]
#[unsafe(no_mangle)]
pub(super) extern "C" fn getrandom(buffer: *mut u8, length: usize, _flags: u32) -> isize {
    // SAFETY: as for the function it replaces, the caller has `length` writable bytes there; zeroed, they are a slice.
    let bytes = unsafe {
        buffer.write_bytes(0, length);
        std::slice::from_raw_parts_mut(buffer, length)
    };
    if fill(bytes) { length.cast_signed() } else { -1 }
}

#[cfg(test)]
mod tests {
    use std::hash::BuildHasher;

    use super::*;

    fn of_seed(seed: u8) -> (u64, [u8; 8]) {
        let thread = std::thread::spawn(move || {
            sow([seed; 32]);
            let mut bytes = [0; 8];
            assert!(fill(&mut bytes));
            (std::hash::RandomState::new().hash_one(1), bytes)
        });
        thread.join().expect("the thread ends")
    }

    #[test]
    fn a_thread_repeats_its_seed_down_to_the_order_of_hash_maps() {
        assert_eq!(of_seed(1), of_seed(1));
        assert_ne!(of_seed(1), of_seed(2));
    }

    #[test]
    fn a_thread_without_a_seed_gets_what_nobody_can_foresee() {
        let draws = [(), ()].map(|()| {
            let mut bytes = [0; 16];
            assert!(fill(&mut bytes));
            bytes
        });
        assert_ne!(draws[0], draws[1]);
    }
}
