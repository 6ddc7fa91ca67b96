//! What becomes of normalised rows beside, or instead of, being stored: the quantisers.

/// A quantiser. Its part of the kernel is `kernels/sink/<name>.cuh`.
#[allow(clippy::enum_variant_names, reason = "the names of the API; those of other number formats begin otherwise")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sink {
    /// FP8 e4m3 with one scale for the tensor, which is given.
    Fp8Static = 1,
    /// FP8 e4m3 with a scale for each row.
    Fp8Token = 2,
    /// FP8 e4m3 with a scale for each [`GROUP_COLUMNS`] columns of a row. The scales of a row lie side by side.
    Fp8Group = 3,
    /// The same, but those of a column do, as DeepGEMM reads them: columns begin at multiples of 16 bytes.
    Fp8GroupColumnMajor = 4,
}

/// Columns that share a scale.
pub const GROUP_COLUMNS: usize = 128;
/// Columns of scales begin at multiples of this many.
const SCALE_ALIGNMENT: usize = 4;

impl Sink {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Fp8Static, Self::Fp8Token, Self::Fp8Group, Self::Fp8GroupColumnMajor];
    /// Those that the kernel tells apart. Where the scales go it is told besides.
    pub const IN_KERNEL: [Self; 3] = [Self::Fp8Static, Self::Fp8Token, Self::Fp8Group];

    /// Its name in the API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fp8Static => "fp8_static",
            Self::Fp8Token => "fp8_token",
            Self::Fp8Group => "fp8_group",
            Self::Fp8GroupColumnMajor => "fp8_group_column_major",
        }
    }

    /// The one of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|sink| sink.name() == name)
    }

    /// The one that the kernel knows it as.
    pub const fn in_kernel(self) -> Self {
        match self {
            Self::Fp8GroupColumnMajor => Self::Fp8Group,
            _ => self,
        }
    }

    /// Columns that share a scale: 0 for all of a row; `None` if the tensor's one scale is given.
    pub const fn group_columns(self) -> Option<usize> {
        match self {
            Self::Fp8Static => None,
            Self::Fp8Token => Some(0),
            Self::Fp8Group | Self::Fp8GroupColumnMajor => Some(GROUP_COLUMNS),
        }
    }

    /// Likewise, of a row of so many columns: all of them, where there are no groups.
    pub const fn columns_of_scale(self, columns: usize) -> usize {
        match self.group_columns() {
            None | Some(0) => columns,
            Some(group) => group,
        }
    }

    /// Whether the scales of a column lie side by side, and not those of a row.
    pub const fn is_column_major(self) -> bool {
        matches!(self, Self::Fp8GroupColumnMajor)
    }

    /// The scales that it computes for a row of so many columns; `None` if the tensor's one scale is given.
    pub const fn scales_of_row(self, columns: usize) -> Option<usize> {
        match self.group_columns() {
            None => None,
            Some(0) => Some(1),
            Some(group) => Some(columns / group),
        }
    }

    /// From a scale to that of the next row, and to the next of its row, in a tensor of so many rows and columns.
    pub const fn scale_strides(self, rows: usize, columns: usize) -> [usize; 2] {
        match self {
            Self::Fp8Static => [0, 0],
            Self::Fp8Token => [1, 1],
            Self::Fp8Group => [columns / GROUP_COLUMNS, 1],
            Self::Fp8GroupColumnMajor => [1, rows.next_multiple_of(SCALE_ALIGNMENT)],
        }
    }

    /// Rows have a multiple of so many columns.
    pub const fn column_multiple(self) -> usize {
        match self {
            Self::Fp8Static | Self::Fp8Token => 8,
            Self::Fp8Group | Self::Fp8GroupColumnMajor => GROUP_COLUMNS,
        }
    }
}
