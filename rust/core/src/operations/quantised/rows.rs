//! Rows that are quantised on the host: where their values come from, and where codes and scales go.

use half::{bf16, f16};
use lamport_rs_kernels::Sink;
use lamport_rs_kernels::sink::ScalePlaces;
use lamport_rs_protocol::sentinel::Vector;

use super::Quantised;
use crate::tensor::{Dtype, Tensor};

/// A byte that is NaN in UE8M0, and in e4m3.
const NAN_BYTE: u8 = 0xff;

/// Quantises rows one after the other.
pub struct RowQuantiser {
    pub(super) sink: Sink,
    dtype: Dtype,
    /// Of the row in hand.
    pub(super) values: Vec<f32>,
    quantised: *mut u8,
    /// The one that is given.
    scale: Option<*const f32>,
    scales: *mut u8,
    places: ScalePlaces,
    rows: usize,
}

impl RowQuantiser {
    /// # Safety
    /// The operands were checked, and their pointers are valid while this is used.
    pub unsafe fn new(quantised: &Quantised, input: &Tensor) -> Self {
        let Quantised { sink, rows, scale, scales } = quantised;
        Self {
            sink: *sink,
            dtype: input.dtype,
            values: Vec::with_capacity(input.columns()),
            quantised: rows.pointer,
            scale: scale.map(|scale| scale.pointer.cast_const().cast()),
            scales: scales.pointer,
            places: sink.scale_places(input.rows(), input.columns()),
            rows: input.rows(),
        }
    }

    /// Takes the next vector of a row.
    pub fn take(&mut self, vector: Vector) {
        let halves = vector.into_iter().flat_map(|word| [word as u16, (word >> 16) as u16]);
        match self.dtype {
            Dtype::Float16 => self.values.extend(halves.map(|bits| f16::from_bits(bits).to_f32())),
            _ => self.values.extend(halves.map(|bits| bf16::from_bits(bits).to_f32())),
        }
    }

    /// Stores what row `row` becomes, of which all vectors were taken.
    pub fn finish(&mut self, row: usize) {
        let columns = self.values.len();
        let group = self.sink.columns_of_scale(columns);
        for (index, values) in self.values.chunks_exact(group).enumerate() {
            self.put(row, index, values);
        }
        for index in self.sink.scales_of_row(columns)..self.sink.padded_scales_of_row(columns) {
            self.put_scale(row, index, &[0]);
        }
        if row + 1 == self.rows {
            self.clear_padding(columns);
        }
        self.values.clear();
    }

    /// Rows that only the tensor of scales has.
    fn clear_padding(&self, columns: usize) {
        for row in self.rows..self.sink.scale_rows(self.rows) {
            for index in 0..self.sink.scales_of_row(columns) {
                self.put_scale(row, index, &[0]);
            }
        }
    }

    /// Makes the scales of `rows` rows NaN, if they are computed.
    pub fn spoil_scales(&self, rows: usize, columns: usize) {
        for index in 0..self.sink.padded_scales_of_row(columns) {
            for row in 0..rows {
                match self.sink.format().scale {
                    Dtype::Float32 => self.put_scale(row, index, &f32::NAN.to_ne_bytes()),
                    _ => self.put_scale(row, index, &[NAN_BYTE]),
                }
            }
        }
    }

    /// Stores the elements of the quantised rows from `first` on, of a byte each.
    pub(super) fn put_codes(&self, first: usize, codes: impl Iterator<Item = u8>) {
        for (at, code) in codes.enumerate() {
            // SAFETY: within the quantised rows, as the constructor's caller promised.
            unsafe { self.quantised.wrapping_add(first + at).write(code) };
        }
    }

    /// Stores scale `index` of a row.
    pub(super) fn put_scale(&self, row: usize, index: usize, bytes: &[u8]) {
        let place = self.scales.wrapping_add(self.places.of(row, index));
        // SAFETY: within the scales, as the constructor's caller promised: a row has as many with those that are 0.
        unsafe { place.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    /// The tensor's scale; NaN if none is given.
    pub(super) fn given_scale(&self) -> f32 {
        // SAFETY: it is a number, as the constructor's caller promised.
        self.scale.map_or(f32::NAN, |scale| unsafe { scale.read_unaligned() })
    }
}
