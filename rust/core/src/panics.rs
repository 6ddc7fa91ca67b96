//! A panic as an error. It is a defect, of this package or of a library below it; but a rank that ends in one alone would
//! leave its peers waiting, and a program that handles errors should be able to handle this one.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::{Error, Result};

/// What `run` returns, or the error that it panicked. What it had changed half-way is for the caller to drop, or to
/// refuse further use of.
pub fn caught<T>(run: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| Err(error_of(&*panic)))
}

/// The error of a panic that was caught.
pub fn error_of(panic: &(dyn Any + Send)) -> Error {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref().copied());
    Error::Panicked(text.unwrap_or("no text").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_with_its_text() {
        let texts = [
            caught::<()>(|| panic!("one")),
            caught::<()>(|| panic!("{}", 2)),
            caught::<()>(|| std::panic::panic_any(3)),
        ]
        .map(|result| result.unwrap_err().to_string());
        for (text, expected) in texts.iter().zip(["a panic: one;", "a panic: 2;", "a panic: no text;"]) {
            assert!(text.starts_with(expected), "{text}");
        }
        assert!(matches!(caught(|| Err::<(), _>(Error::CleanedUp)), Err(Error::CleanedUp)));
        assert_eq!(caught(|| Ok(4)).unwrap(), 4);
    }
}
