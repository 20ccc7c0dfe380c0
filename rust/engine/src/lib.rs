//! placeholder
mod os;
pub mod shared;
