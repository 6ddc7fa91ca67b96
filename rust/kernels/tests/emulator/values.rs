//! Tensors' contents, and the reference: written anew, on words and float32, from docs/protocol.md.

use std::cell::Cell;

use half::{bf16, f16};
use lamport_rs_kernels::Dtype;

/// A small generator of random numbers: SplitMix64.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    pub fn below(&mut self, end: usize) -> usize {
        ((u128::from(self.next()) * end as u128) >> 64) as usize
    }
}

/// An element's bits as a number.
pub fn decode(dtype: Dtype, bits: u32) -> f32 {
    match dtype {
        Dtype::Float32 => f32::from_bits(bits),
        Dtype::Float16 => f16::from_bits(bits as u16).to_f32(),
        Dtype::BFloat16 => bf16::from_bits(bits as u16).to_f32(),
        _ => unreachable!("no operation computes with it"),
    }
}

/// A number, rounded, as an element's bits.
pub fn encode(dtype: Dtype, value: f32) -> u32 {
    match dtype {
        Dtype::Float32 => value.to_bits(),
        Dtype::Float16 => f16::from_f32(value).to_bits().into(),
        Dtype::BFloat16 => bf16::from_f32(value).to_bits().into(),
        _ => unreachable!("no operation computes with it"),
    }
}

/// A tensor's elements, as bits.
pub fn elements(dtype: Dtype, bytes: &[u8]) -> Vec<u32> {
    match dtype.size() {
        4 => bytes.chunks_exact(4).map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect(),
        _ => bytes.chunks_exact(2).map(|b| u16::from_ne_bytes([b[0], b[1]]).into()).collect(),
    }
}

/// Elements, as bits, in memory.
pub fn to_bytes(dtype: Dtype, elements: &[u32]) -> Vec<u8> {
    elements.iter().flat_map(|bits| bits.to_ne_bytes()[..dtype.size()].to_vec()).collect()
}

/// What a tensor is filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Values {
    /// Moderate numbers, both zeros, subnormal numbers, and sentinels.
    Finite,
    /// NaN and infinities too, in a few rows: a row that has one has no other result.
    Any,
}

/// One row in so many, and never the first, has numbers that are not finite.
const ROWS_PER_SPECIAL: usize = 40;

/// This row, if there is one, is of zeros alone, on every rank: its sum is too.
const ROW_OF_ZEROS: usize = 2;

/// A tensor of random elements, in rows of `width`.
pub fn tensor(random: &mut Random, dtype: Dtype, width: usize, count: usize, values: Values) -> Vec<u8> {
    let sign = 1 << (8 * dtype.size() - 1);
    let mut bits = Vec::new();
    while bits.len() < count {
        let special = values == Values::Any && !bits.is_empty() && random.below(ROWS_PER_SPECIAL) == 0;
        bits.extend((0..width.min(count - bits.len())).map(|_| match random.below(24) {
            0 => 0,
            1 | 2 => sign,
            3 => (random.next() as u32 & sign) | (1 + random.below(3) as u32),
            4 if special => encode(dtype, [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][random.below(3)]),
            _ => encode(dtype, (random.below(4001) as f32 - 2000.0) / 256.0),
        }));
    }
    for bits in bits.iter_mut().skip(ROW_OF_ZEROS * width).take(width) {
        *bits &= sign;
    }
    // The pair (+0, -0), which is the sentinel too.
    if dtype.size() == 2 {
        for pair in bits.chunks_exact_mut(2) {
            if random.below(16) == 0 {
                pair.copy_from_slice(&[0, sign]);
            }
        }
    }
    to_bytes(dtype, &bits)
}

/// The sum of all ranks' tensors, and of a residual, in float32 and in rank order, rounded once; never -0.0.
pub fn sum(dtype: Dtype, tensors: &[Vec<u8>], residual: Option<&[u8]>) -> Vec<u8> {
    let tensors: Vec<_> = tensors.iter().map(|tensor| elements(dtype, tensor)).collect();
    let mut sums: Vec<f32> = tensors[0].iter().map(|&bits| decode(dtype, bits)).collect();
    for tensor in &tensors[1..] {
        for (sum, &bits) in sums.iter_mut().zip(tensor) {
            *sum += decode(dtype, bits);
        }
    }
    if let Some(residual) = residual {
        for (sum, bits) in sums.iter_mut().zip(elements(dtype, residual)) {
            *sum += decode(dtype, bits);
        }
    }
    let rounded: Vec<u32> = sums.into_iter().map(|sum| encode(dtype, sum + 0.0)).collect();
    to_bytes(dtype, &rounded)
}

/// RMSNorm, in float64, of the first part of rows whose columns are spread over `parts`, of `width` columns each, with
/// the weights of those columns.
pub fn rms_norm(
    dtype: Dtype,
    parts: &[&[u8]],
    width: usize,
    (weight_dtype, weights): (Dtype, &[u8]),
    epsilon: f32,
    weight_bias: f32,
) -> Vec<f64> {
    let numbers = |part: &&[u8]| -> Vec<f64> {
        elements(dtype, part).into_iter().map(|bits| decode(dtype, bits).into()).collect()
    };
    let parts: Vec<_> = parts.iter().map(numbers).collect();
    let weights: Vec<f64> = elements(weight_dtype, weights)
        .into_iter()
        .map(|bits| f64::from(decode(weight_dtype, bits)) + f64::from(weight_bias))
        .collect();
    let mut normalised = Vec::new();
    for (token, row) in parts[0].chunks_exact(width).enumerate() {
        let columns = token * width..(token + 1) * width;
        let squares: f64 = parts.iter().flat_map(|part| &part[columns.clone()]).map(|x| x * x).sum();
        let scale = 1.0 / (squares / (width * parts.len()) as f64 + f64::from(epsilon)).sqrt();
        normalised.extend(row.iter().zip(&weights).map(|(x, weight)| x * scale * weight));
    }
    normalised
}

/// The layer norm of rows of `width` elements, in float64, and what its terms come to without their signs. Weights and
/// biases, if there are any, are of one dtype.
pub fn layer_norm(
    dtype: Dtype,
    rows: &[u8],
    width: usize,
    (weight_dtype, weights, bias): (Dtype, &[u8], Option<&[u8]>),
    epsilon: f32,
) -> (Vec<f64>, Vec<f64>) {
    let numbers = |dtype: Dtype, bytes: &[u8]| -> Vec<f64> {
        elements(dtype, bytes).into_iter().map(|bits| decode(dtype, bits).into()).collect()
    };
    let weights = numbers(weight_dtype, weights);
    let biases = bias.map_or_else(|| vec![0.0; width], |bias| numbers(weight_dtype, bias));
    let of_row = |row: &[f64]| -> Vec<(f64, f64)> {
        let mean = row.iter().sum::<f64>() / width as f64;
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
        let scale = 1.0 / (variance + f64::from(epsilon)).sqrt();
        let factors = weights.iter().zip(&biases);
        let result = |(x, (weight, bias)): (&f64, (&f64, &f64))| {
            let terms = (x.abs() + mean.abs()) * scale * weight.abs() + bias.abs();
            ((x - mean) * scale * weight + bias, terms)
        };
        row.iter().zip(factors).map(result).collect()
    };
    numbers(dtype, rows).chunks_exact(width).flat_map(of_row).unzip()
}

thread_local! {
    static SOME_ARE_MISSING: Cell<bool> = const { Cell::new(false) };
}

/// Runs `check` of results of which some did not come: these are NaN, and the others right.
pub fn with_some_missing<T>(check: impl FnOnce() -> T) -> T {
    SOME_ARE_MISSING.set(true);
    let checked = check();
    SOME_ARE_MISSING.set(false);
    checked
}

/// Whether NaN stands for what did not come.
pub fn some_are_missing() -> bool {
    SOME_ARE_MISSING.get()
}

/// Compares bit by bit; one NaN is as good as another.
pub fn check_bits(what: &str, dtype: Dtype, found: &[u8], expected: &[u8]) -> Result<(), String> {
    for (index, (found, expected)) in elements(dtype, found).into_iter().zip(elements(dtype, expected)).enumerate() {
        let is_nan = decode(dtype, found).is_nan() && (decode(dtype, expected).is_nan() || some_are_missing());
        if found != expected && !is_nan {
            return Err(format!("{what}: element {index} is {found:#x}, but should be {expected:#x}"));
        }
    }
    Ok(())
}

/// Checks that every element is NaN.
pub fn check_nan(what: &str, dtype: Dtype, found: &[u8]) -> Result<(), String> {
    match elements(dtype, found).into_iter().position(|bits| !decode(dtype, bits).is_nan()) {
        Some(index) => Err(format!("{what}: element {index} is a number after a fault")),
        None => Ok(()),
    }
}

/// Of so many elements, a quarter must be finite: the others say little.
const MANY: usize = 4096;

/// Compares with float64 numbers: within what rounding to `dtype`, and sums in float32, may do.
pub fn check_near(what: &str, dtype: Dtype, found: &[u8], expected: &[f64]) -> Result<(), String> {
    check_near_sums(what, dtype, found, expected, &vec![0.0; expected.len()])
}

/// Likewise with numbers that are sums, whose `terms`, without their signs, may be so large: they may cancel.
pub fn check_near_sums(what: &str, dtype: Dtype, found: &[u8], expected: &[f64], terms: &[f64]) -> Result<(), String> {
    let (relative, least) = match dtype {
        Dtype::Float32 => (1e-5, f64::from(f32::MIN_POSITIVE)),
        Dtype::Float16 => (1e-3, 1.2e-7),
        Dtype::BFloat16 => (8e-3, f64::from(f32::MIN_POSITIVE)),
        _ => unreachable!("no operation computes with it"),
    };
    let finite = expected.iter().filter(|number| number.is_finite()).count();
    if expected.len() >= MANY && finite < expected.len() / 4 {
        return Err(format!("{what}: of {} elements only {finite} are finite, so change the case", expected.len()));
    }
    let pairs = elements(dtype, found).into_iter().zip(expected).zip(terms);
    for (index, ((bits, &expected), terms)) in pairs.enumerate() {
        let found = f64::from(decode(dtype, bits));
        let is_near = (found - expected).abs() <= relative * expected.abs() + 1e-5 * terms + least;
        let is_nan = found.is_nan() && (expected.is_nan() || some_are_missing());
        if !is_near && found != expected && !is_nan {
            return Err(format!("{what}: element {index} is {found}, but should be {expected}"));
        }
    }
    Ok(())
}
