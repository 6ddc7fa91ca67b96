//! How structs are laid out that kernels take by value.

/// How a struct is laid out in memory.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Its name in the assertion.
    pub name: &'static str,
    /// All of it.
    pub bytes: usize,
    /// Fields, and where each begins. CUDA has no `reserved`, and inherits from `base`.
    pub fields: &'static [(&'static str, usize)],
}

/// Defines structs, and says how each is laid out: behind it stand the assertion's name, and the type.
macro_rules! laid_out {
    ($(
        $(#[$attribute:meta])+
        pub struct $struct:ident $(<const $count:ident: usize>)? {
            $($(#[$of_field:meta])+ pub $field:ident: $type:ty,)+
        }
        = $($name:ident: $instance:ty),+;
    )+) => {
        $(
            $(#[$attribute])+
            pub struct $struct $(<const $count: usize>)? { $($(#[$of_field])+ pub $field: $type),+ }
        )+

        $(
            impl $(<const $count: usize>)? $struct $(<$count>)? {
                const FIELDS: &'static [(&'static str, usize)] = &[$((stringify!($field), std::mem::offset_of!(Self, $field))),+];
            }
        )+

        /// Of every struct that CUDA has too.
        pub const LAYOUTS: &[Layout] = &[$($(
            Layout { name: stringify!($name), bytes: size_of::<$instance>(), fields: <$instance>::FIELDS }
        ),+),+];
    };
}

pub(crate) use laid_out;
