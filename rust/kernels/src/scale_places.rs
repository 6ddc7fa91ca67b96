//! Where the scales of quantised rows are in memory.

/// Where the scales of a tensor lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScaleLayout {
    /// Those of a row side by side.
    RowMajor,
    /// Elements of a column side by side. Columns begin at multiples of 16 bytes.
    ColumnMajor,
    /// In tiles of 128 rows and 4 scales, of 512 bytes each, as the tensor cores of Blackwell read them. The tiles of 128
    /// rows lie side by side.
    Swizzled,
}

impl ScaleLayout {
    /// Its name in Python.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RowMajor => "row_major",
            Self::ColumnMajor => "column_major",
            Self::Swizzled => "swizzled",
        }
    }
}

/// Columns of scales begin at multiples of this many bytes.
pub const SCALE_ALIGNMENT: usize = 16;
/// Rows of a tile of swizzled scales.
pub const TILE_ROWS: usize = 128;
/// Scales of one row in it. All byte scales lie in such fours.
pub const TILE_SCALES: usize = 4;

/// Where the scales of a tensor are: how many bytes from one to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScalePlaces {
    /// To the next row's, within 32 rows.
    pub row: usize,
    /// To that of the 32nd row from it, within 128 rows.
    pub rows_32: usize,
    /// To that of the 128th row from it.
    pub rows_128: usize,
    /// To the fourth from it in its row.
    pub scales_4: usize,
    /// To the next, of four.
    pub scale: usize,
}

impl ScalePlaces {
    /// From the first one to scale `index` of row `row`.
    pub const fn of(self, row: usize, index: usize) -> usize {
        let (tile_row, column) = (row % TILE_ROWS, index % TILE_SCALES);
        let rows = tile_row % 32 * self.row + tile_row / 32 * self.rows_32 + row / TILE_ROWS * self.rows_128;
        rows + index / TILE_SCALES * self.scales_4 + column * self.scale
    }
}

#[cfg(test)]
mod tests {
    use crate::sink::Sink;

    #[test]
    fn scales_lie_side_by_side_in_rows_or_in_columns() {
        let rows = Sink::Fp8Group.scale_places(9, 1280);
        let columns = Sink::Fp8GroupColumnMajor.scale_places(9, 1280);
        let packed = Sink::Fp8GroupUe8m0.scale_places(9, 1280);
        for (row, index) in (0..9).flat_map(|row| (0..10).map(move |index| (row, index))) {
            assert_eq!(rows.of(row, index), 4 * (10 * row + index));
            assert_eq!(columns.of(row, index), 4 * (row + 12 * index));
            assert_eq!(packed.of(row, index), 4 * (row + 12 * (index / 4)) + index % 4);
        }
        assert_eq!(Sink::Fp8GroupUe8m0.scale_elements(1280), 3);
    }

    #[test]
    fn swizzled_scales_fill_whole_tiles_in_the_order_of_the_tensor_cores() {
        let (rows, columns) = (300, 1280);
        let (places, scales) = (Sink::Mxfp8Swizzled.scale_places(rows, columns), 40);
        let bytes = Sink::Mxfp8Swizzled.scale_rows(rows) * scales;
        let mut is_there = vec![false; bytes];
        for (row, index) in (0..384).flat_map(|row| (0..scales).map(move |index| (row, index))) {
            let tile = row / 128 * (scales / 4) + index / 4;
            let expected = 512 * tile + row % 32 * 16 + row % 128 / 32 * 4 + index % 4;
            assert_eq!(places.of(row, index), expected);
            assert!(!std::mem::replace(&mut is_there[expected], true));
        }
        assert!(is_there.into_iter().all(|it| it));
    }
}
