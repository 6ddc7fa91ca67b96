//! What becomes of normalised rows beside, or instead of, being stored: the quantisers.

use crate::dtype::Dtype;
use crate::scale_places::{SCALE_ALIGNMENT, TILE_ROWS, TILE_SCALES};
pub use crate::scale_places::{ScaleLayout, ScalePlaces};

/// A quantiser. Its part of the kernel is `kernels/sink/<name>.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sink {
    /// FP8 e4m3 with one scale for the tensor, which is given.
    Fp8Static = 1,
    /// FP8 e4m3 with a scale for each row.
    Fp8Token = 2,
    /// FP8 e4m3 with a scale for each 128 columns of a row. The scales of a row lie side by side.
    Fp8Group = 3,
    /// The same, but those of a column do, as DeepGEMM reads them: columns begin at multiples of 16 bytes.
    Fp8GroupColumnMajor = 4,
    /// FP8 e4m3 with a power of two for each 128 columns of a row: four exponents in an int32, and these column-major.
    Fp8GroupUe8m0 = 5,
    /// MXFP8: FP8 e4m3 with a power of two for each 32 columns of a row, as an exponent.
    Mxfp8 = 6,
    /// The same, with the scales in tiles of 128 rows and 4 scales.
    Mxfp8Swizzled = 7,
    /// NVFP4: FP4 e2m1, two to a byte, with an FP8 e4m3 scale for each 16 columns of a row and one for the tensor, which is
    /// given.
    Nvfp4 = 8,
    /// The same, with the scales in tiles of 128 rows and 4 scales.
    Nvfp4Swizzled = 9,
}

/// The kernels that have quantisers. Which of its quantisers one is to run is a choice at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// Scales are float32: `kernels/sink/quantise.cuh`.
    Float32Scales,
    /// Scales are a byte each: `kernels/sink/quantise_blocks.cuh`.
    ByteScales,
}

/// What all layers know of a quantiser.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Its name in the API.
    pub name: &'static str,
    /// The one that the kernel knows it as. Where the scales go it is told besides.
    pub in_kernel: Sink,
    /// Which kernel.
    pub family: Family,
    /// Whether a scale for the tensor is given.
    pub is_given: bool,
    /// Columns that share a scale that is computed: 0 for all of a row; `None` if none is computed.
    pub group_columns: Option<usize>,
    /// The dtype of the quantised rows.
    pub code: Dtype,
    /// Columns of the row in one element of that dtype.
    pub columns_per_code: usize,
    /// The dtype of the tensor of scales.
    pub scale: Dtype,
    /// Scales in one element of that dtype. Where a row's last element has more, they are 0.
    pub scales_per_element: usize,
    /// Where the scales lie.
    pub layout: ScaleLayout,
}

const FP8_STATIC: Format = Format {
    name: "fp8_static",
    in_kernel: Sink::Fp8Static,
    family: Family::Float32Scales,
    is_given: true,
    group_columns: None,
    code: Dtype::Float8E4M3,
    columns_per_code: 1,
    scale: Dtype::Float32,
    scales_per_element: 1,
    layout: ScaleLayout::RowMajor,
};
const FP8_TOKEN: Format =
    Format { name: "fp8_token", in_kernel: Sink::Fp8Token, is_given: false, group_columns: Some(0), ..FP8_STATIC };
const FP8_GROUP: Format =
    Format { name: "fp8_group", in_kernel: Sink::Fp8Group, group_columns: Some(128), ..FP8_TOKEN };
const FP8_GROUP_COLUMN_MAJOR: Format =
    Format { name: "fp8_group_column_major", layout: ScaleLayout::ColumnMajor, ..FP8_GROUP };
const FP8_GROUP_UE8M0: Format = Format {
    name: "fp8_group_ue8m0",
    in_kernel: Sink::Fp8GroupUe8m0,
    family: Family::ByteScales,
    scale: Dtype::Int32,
    scales_per_element: 4,
    ..FP8_GROUP_COLUMN_MAJOR
};
const MXFP8: Format = Format {
    name: "mxfp8",
    in_kernel: Sink::Mxfp8,
    group_columns: Some(32),
    scale: Dtype::UInt8,
    scales_per_element: 1,
    layout: ScaleLayout::RowMajor,
    ..FP8_GROUP_UE8M0
};
const MXFP8_SWIZZLED: Format = Format { name: "mxfp8_swizzled", layout: ScaleLayout::Swizzled, ..MXFP8 };
const NVFP4: Format = Format {
    name: "nvfp4",
    in_kernel: Sink::Nvfp4,
    is_given: true,
    group_columns: Some(16),
    code: Dtype::UInt8,
    columns_per_code: 2,
    scale: Dtype::Float8E4M3,
    ..MXFP8
};
const NVFP4_SWIZZLED: Format = Format { name: "nvfp4_swizzled", layout: ScaleLayout::Swizzled, ..NVFP4 };

impl Sink {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Fp8Static,
        Self::Fp8Token,
        Self::Fp8Group,
        Self::Fp8GroupColumnMajor,
        Self::Fp8GroupUe8m0,
        Self::Mxfp8,
        Self::Mxfp8Swizzled,
        Self::Nvfp4,
        Self::Nvfp4Swizzled,
    ];

    /// What is known of it.
    pub const fn format(self) -> Format {
        match self {
            Self::Fp8Static => FP8_STATIC,
            Self::Fp8Token => FP8_TOKEN,
            Self::Fp8Group => FP8_GROUP,
            Self::Fp8GroupColumnMajor => FP8_GROUP_COLUMN_MAJOR,
            Self::Fp8GroupUe8m0 => FP8_GROUP_UE8M0,
            Self::Mxfp8 => MXFP8,
            Self::Mxfp8Swizzled => MXFP8_SWIZZLED,
            Self::Nvfp4 => NVFP4,
            Self::Nvfp4Swizzled => NVFP4_SWIZZLED,
        }
    }

    /// Its name in the API.
    pub const fn name(self) -> &'static str {
        self.format().name
    }

    /// The one of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|sink| sink.name() == name)
    }

    /// Columns that share a scale, of a row of so many columns: all of them, where there are no groups.
    pub const fn columns_of_scale(self, columns: usize) -> usize {
        match self.format().group_columns {
            None | Some(0) => columns,
            Some(group) => group,
        }
    }

    /// The scales that it computes for a row of so many columns; 0 if it computes none.
    pub const fn scales_of_row(self, columns: usize) -> usize {
        match self.format().group_columns {
            None => 0,
            Some(0) => 1,
            Some(group) => columns / group,
        }
    }

    /// Likewise, with those that are 0.
    pub const fn padded_scales_of_row(self, columns: usize) -> usize {
        self.scales_of_row(columns).next_multiple_of(self.format().scales_per_element)
    }

    /// Elements of the tensor of scales for a row of so many columns; of a row of tiles where they are swizzled.
    pub const fn scale_elements(self, columns: usize) -> usize {
        self.padded_scales_of_row(columns) / self.format().scales_per_element
    }

    /// Rows of the tensor of scales for so many rows.
    pub const fn scale_rows(self, rows: usize) -> usize {
        match self.format().layout {
            ScaleLayout::Swizzled => rows.next_multiple_of(TILE_ROWS),
            _ => rows,
        }
    }

    /// From an element of the tensor of scales to that of the next row, and to the next of its row, where that tensor has
    /// so many rows and elements in a row.
    pub const fn element_strides(self, rows: usize, elements: usize) -> [usize; 2] {
        match self.format().layout {
            ScaleLayout::ColumnMajor => [1, rows.next_multiple_of(SCALE_ALIGNMENT / self.format().scale.size())],
            _ => [elements, 1],
        }
    }

    /// Where the scales of a tensor of so many rows and columns are.
    pub const fn scale_places(self, rows: usize, columns: usize) -> ScalePlaces {
        let Format { scale, scales_per_element, layout, group_columns, .. } = self.format();
        if group_columns.is_none() {
            return ScalePlaces { row: 0, rows_32: 0, rows_128: 0, scales_4: 0, scale: 0 };
        }
        let elements = self.scale_elements(columns);
        let [row, element] = self.element_strides(rows, elements);
        let (row, element) = (row * scale.size(), element * scale.size());
        match layout {
            ScaleLayout::Swizzled => ScalePlaces {
                row: 16,
                rows_32: TILE_SCALES,
                rows_128: TILE_ROWS * elements,
                scales_4: TILE_ROWS * TILE_SCALES,
                scale: 1,
            },
            _ => ScalePlaces {
                row,
                rows_32: 32 * row,
                rows_128: TILE_ROWS * row,
                scales_4: TILE_SCALES / scales_per_element * element,
                scale: if scales_per_element == 1 { element } else { scale.size() / scales_per_element },
            },
        }
    }

    /// Rows have a multiple of so many columns: whole vectors, groups, and tiles.
    pub const fn column_multiple(self) -> usize {
        match self.format() {
            Format { group_columns: None | Some(0), .. } => 8,
            Format { group_columns: Some(group), layout: ScaleLayout::Swizzled, .. } => group * TILE_SCALES,
            Format { group_columns: Some(group), .. } => group,
        }
    }
}
