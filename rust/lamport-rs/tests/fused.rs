//! Quantised outputs, layer norms and experts' rows over shared memory, through the crate's API, with ranks as threads.

#[allow(dead_code, reason = "other tests' too")]
mod threads;

use half::{bf16, f16};
use lamport_rs::host::{Communicator, Experts, Quantised};
use lamport_rs::{ErrorKind, LayerNorm, Options, QuantFormat, RmsNorm};

use self::threads::{LONGEST_WAIT, on_ranks};

const RANKS: usize = 3;
const ROWS: usize = 5;
const COLUMNS: usize = 256;

/// A communicator for each rank, and what each returns.
fn communicate<R: Send>(run: impl Fn(Communicator) -> R + Sync) -> Vec<R> {
    let options = Options::default().comm_size(16 << 10).timeout(LONGEST_WAIT);
    on_ranks(
        RANKS,
        |rank, rendezvous| run(Communicator::new(rank, RANKS, rendezvous, options).expect("all ranks meet")),
    )
}

/// A small integer, other than 0 in every block.
fn value(rank: usize, at: usize) -> f32 {
    ((at * 7 + rank * 3) % 11) as f32 - 5.0
}

fn values(rank: usize, length: usize) -> Vec<bf16> {
    (0..length).map(|at| bf16::from_f32(value(rank, at))).collect()
}

/// What a byte of FP8 e4m3 stands for.
fn from_e4m3(code: u8) -> f32 {
    let (exponent, fraction) = (i32::from(code >> 3 & 15), f32::from(code & 7) / 8.0);
    let magnitude = if exponent == 0 { fraction / 64.0 } else { (1.0 + fraction) * f32::powi(2.0, exponent - 7) };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// What four bits of FP4 e2m1 stand for.
fn from_e2m1(code: u8) -> f32 {
    let magnitude = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0][usize::from(code & 7)];
    if code & 8 == 0 { magnitude } else { -magnitude }
}

fn float_at(scales: &[u8], index: usize) -> f32 {
    f32::from_ne_bytes(scales[index * 4..][..4].try_into().unwrap())
}

/// Where a scale is in tiles of 128 rows and 4 scales.
fn swizzled(row: usize, index: usize, scales_of_row: usize) -> usize {
    let tile = row / 128 * (scales_of_row / 4) + index / 4;
    tile * 512 + row % 32 * 16 + row % 128 / 32 * 4 + index % 4
}

/// The value at a place, of codes and scales, as the format's definition has it.
fn read_back(format: QuantFormat, codes: &[u8], scales: &[u8], given: f32, row: usize, column: usize) -> f32 {
    let at = row * COLUMNS + column;
    let power = |exponent: u8| f32::powi(2.0, i32::from(exponent) - 127);
    let four_bits = || from_e2m1(codes[at / 2] >> (4 * (at % 2)) & 15);
    match format {
        QuantFormat::Fp8Static => from_e4m3(codes[at]) * given,
        QuantFormat::Fp8Token => from_e4m3(codes[at]) * float_at(scales, row),
        QuantFormat::Fp8Group => from_e4m3(codes[at]) * float_at(scales, row * (COLUMNS / 128) + column / 128),
        // Columns of 5 rows take the place of 8.
        QuantFormat::Fp8GroupColumnMajor => from_e4m3(codes[at]) * float_at(scales, column / 128 * 8 + row),
        QuantFormat::Fp8GroupUe8m0 => from_e4m3(codes[at]) * power(scales[row * 4 + column / 128]),
        QuantFormat::Mxfp8 => from_e4m3(codes[at]) * power(scales[row * (COLUMNS / 32) + column / 32]),
        QuantFormat::Mxfp8Swizzled => from_e4m3(codes[at]) * power(scales[swizzled(row, column / 32, COLUMNS / 32)]),
        QuantFormat::Nvfp4 => four_bits() * from_e4m3(scales[row * (COLUMNS / 16) + column / 16]) / given,
        QuantFormat::Nvfp4Swizzled => four_bits() * from_e4m3(scales[swizzled(row, column / 16, COLUMNS / 16)]) / given,
        _ => unreachable!("a format without a test"),
    }
}

/// Room for the codes and scales of a format, and the scale that it takes.
fn room(format: QuantFormat) -> (Vec<u8>, Vec<u8>, f32) {
    let scale = if matches!(format, QuantFormat::Fp8Static) { 0.5 } else { 2.0 };
    (vec![0xff; format.code_bytes(ROWS, COLUMNS)], vec![0xff; format.scale_bytes(ROWS, COLUMNS)], scale)
}

fn quantised<'a>(format: QuantFormat, codes: &'a mut [u8], scales: &'a mut [u8], scale: f32) -> Quantised<'a> {
    let mut quantised = Quantised::new(format, codes);
    if !scales.is_empty() {
        quantised = quantised.with_scales(scales);
    }
    if format.takes_scale() { quantised.with_scale(scale) } else { quantised }
}

/// How far a value may be from the one that was quantised, whose block has this largest magnitude.
fn tolerance(format: QuantFormat, value: f32, largest: f32) -> f32 {
    match format {
        // Half a step of the largest, and the scale's own rounding.
        QuantFormat::Nvfp4 | QuantFormat::Nvfp4Swizzled => largest / 6.0 * 1.2,
        _ => value.abs() / 15.0,
    }
}

#[test]
fn codes_and_scales_stand_for_the_sum() {
    communicate(|mut communicator| {
        let input = values(communicator.rank(), ROWS * COLUMNS);
        for &format in QuantFormat::ALL {
            let (mut codes, mut scales, scale) = room(format);
            let mut sum = vec![bf16::NAN; ROWS * COLUMNS];
            let (mut again, mut scales_again, _) = room(format);
            let of_sum = quantised(format, &mut codes, &mut scales, scale);
            communicator.all_reduce_quant(&input, COLUMNS, of_sum, Some(&mut sum)).unwrap();
            let alone = quantised(format, &mut again, &mut scales_again, scale);
            communicator.all_reduce_quant(&input, COLUMNS, alone, None).unwrap();
            assert_eq!((&codes, &scales), (&again, &scales_again), "{format:?}");
            for (at, sum) in sum.iter().enumerate() {
                let expected: f32 = (0..RANKS).map(|rank| value(rank, at)).sum();
                assert_eq!(sum.to_f32(), expected);
                let found = read_back(format, &codes, &scales, scale, at / COLUMNS, at % COLUMNS);
                let error = (found - expected).abs();
                assert!(error <= tolerance(format, expected, 15.0), "{format:?} at {at}: {found} for {expected}");
            }
        }
    });
}

#[test]
fn codes_and_scales_stand_for_the_normalised_rows() {
    communicate(|mut communicator| {
        let input = values(communicator.rank(), ROWS * COLUMNS);
        let residual = values(7, ROWS * COLUMNS);
        let weight: Vec<f32> = (0..COLUMNS).map(|at| 1.0 + at as f32 / 256.0).collect();
        let norm = RmsNorm::new(1e-5);
        let [mut output, mut sum, mut normed, mut added] = [(); 4].map(|()| vec![bf16::NAN; ROWS * COLUMNS]);
        for &format in QuantFormat::ALL {
            for (residual, has_output) in [(Some(&residual[..]), true), (None, false)] {
                let (mut codes, mut scales, scale) = room(format);
                let outputs = (has_output.then_some(&mut output[..]), &mut sum[..]);
                let rows = quantised(format, &mut codes, &mut scales, scale);
                communicator.all_reduce_rms_norm_quant(&input, residual, &weight, rows, outputs, norm).unwrap();
                let outputs = (&mut normed[..], &mut added[..]);
                communicator.all_reduce_rms_norm_into(&input, residual, &weight, outputs, norm).unwrap();
                assert_eq!(sum, added);
                assert!(!has_output || output == normed, "{format:?}");
                for (at, normed) in normed.iter().enumerate() {
                    let found = read_back(format, &codes, &scales, scale, at / COLUMNS, at % COLUMNS);
                    let (expected, error) = (normed.to_f32(), (found - normed.to_f32()).abs());
                    // Below the least normal number steps are of one size.
                    let least = if format == QuantFormat::Fp8Static { scale / 1024.0 } else { 0.0 };
                    let most = tolerance(format, expected, 5.0).max(least);
                    assert!(error <= most, "{format:?} at {at}: {found} for {expected}");
                }
            }
        }
    });
}

#[test]
fn layer_norms_have_mean_and_variance_of_the_rows() {
    communicate(|mut communicator| {
        let of = |value: f32| f16::from_f32(value);
        let input: Vec<f16> = (0..ROWS * 16).map(|at| of(value(communicator.rank(), at))).collect();
        let residual: Vec<f16> = (0..ROWS * 16).map(|at| of(at as f32 / 8.0)).collect();
        let weight: Vec<f32> = (0..16).map(|at| at as f32 / 4.0).collect();
        let bias: Vec<f32> = (0..16).map(|at| at as f32 - 8.0).collect();
        for (residual, bias) in [(Some(&residual[..]), Some(&bias[..])), (None, None)] {
            let (mut output, mut sum) = (vec![f16::NAN; ROWS * 16], vec![f16::NAN; ROWS * 16]);
            let (parameters, outputs) = ((&weight[..], bias), (&mut output[..], &mut sum[..]));
            communicator
                .all_reduce_layer_norm_into(&input, residual, parameters, outputs, LayerNorm::new(1e-5))
                .unwrap();
            for (row, found) in output.chunks(16).enumerate() {
                let at = |column: usize| row * 16 + column;
                let added = |at: usize| residual.map_or(0.0, |residual| residual[at].to_f32());
                let sums: Vec<f32> = (0..16)
                    .map(|column| (0..RANKS).map(|rank| value(rank, at(column))).sum::<f32>() + added(at(column)))
                    .collect();
                assert_eq!(sum[row * 16..][..16].iter().map(|sum| sum.to_f32()).collect::<Vec<_>>(), sums);
                let mean = sums.iter().sum::<f32>() / 16.0;
                let variance = sums.iter().map(|sum| (sum - mean).powi(2)).sum::<f32>() / 16.0;
                for (column, found) in found.iter().enumerate() {
                    let expected = (sums[column] - mean) / (variance + 1e-5).sqrt() * weight[column]
                        + bias.map_or(0.0, |bias| bias[column]);
                    assert!((found.to_f32() - expected).abs() <= 1e-2, "row {row}: {found} for {expected}");
                }
            }
        }
    });
}

#[test]
fn tokens_are_the_weighted_sums_of_their_experts_rows() {
    communicate(|mut communicator| {
        let rank = communicator.rank();
        let row = |rank: usize, number: i32| (number + 1) as f32 + rank as f32;
        let rows: Vec<bf16> = (0..4 * 8).map(|at| bf16::from_f32(row(rank, at / 8))).collect();
        // No row, the row of another token, and one twice.
        let (index, weights) = ([0, 3, -1, 2, 1, 1], [1.0, 2.0, 9.0, 1.0, 0.5, 0.5]);
        let shared: Vec<bf16> = vec![bf16::from_f32(4.0); 3 * 8];
        let mut experts = Experts::new(&rows, 8, (&index, &weights), 2);
        if rank == 0 {
            experts = experts.with_shared(&shared);
        }
        let mut output = vec![bf16::NAN; 3 * 8];
        communicator.moe_finalize_all_reduce(&experts, &mut output).unwrap();
        let expected = |token: usize| {
            let of_rank = |rank: usize| {
                let chosen = (0..2).map(|j| (index[token * 2 + j], weights[token * 2 + j])).filter(|(at, _)| *at >= 0);
                chosen.map(|(at, weight)| row(rank, at) * weight).sum::<f32>()
            };
            (0..RANKS).map(of_rank).sum::<f32>() + 4.0
        };
        for (at, found) in output.iter().enumerate() {
            assert_eq!(found.to_f32(), expected(at / 8));
        }
        let (residual, weight) = (values(9, 3 * 8), [1.5_f32; 8]);
        for residual in [Some(&residual[..]), None] {
            let (mut normed, mut sum) = (output.clone(), output.clone());
            let outputs = (&mut normed[..], &mut sum[..]);
            communicator
                .moe_finalize_all_reduce_rms_norm(&experts, residual, &weight, outputs, RmsNorm::new(1e-5))
                .unwrap();
            for (row, (normed, sum)) in normed.chunks(8).zip(sum.chunks(8)).enumerate() {
                let added = |at: usize| residual.map_or(0.0, |residual| residual[row * 8 + at].to_f32());
                let squares: f32 = (0..8).map(|at| (expected(row) + added(at)).powi(2)).sum();
                for at in 0..8 {
                    let expected = bf16::from_f32(expected(row) + added(at));
                    assert_eq!(sum[at], expected);
                    let expected = expected.to_f32() / (squares / 8.0 + 1e-5).sqrt() * 1.5;
                    assert!((normed[at].to_f32() - expected).abs() <= expected.abs() / 64.0);
                }
            }
        }
    });
}

#[test]
fn what_cannot_be_operands_is_refused_and_named() {
    communicate(|mut communicator| {
        let wide = 2056;
        let (input, mut bytes, mut sum) = (values(0, 2 * wide), vec![0_u8; 2 * wide], values(0, 2 * wide));
        let mut refuse = |text: &str, call: &mut dyn FnMut(&mut Communicator, &mut [u8]) -> lamport_rs::Result<()>| {
            let error = call(&mut communicator, &mut bytes).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Argument, "{error}");
            assert!(error.to_string().contains(text), "{error}");
        };
        refuse("the buffer of codes has 255 elements, but must have 256", &mut |communicator, bytes| {
            let rows = Quantised::new(QuantFormat::Fp8Static, &mut bytes[..255]).with_scale(1.0);
            communicator.all_reduce_quant(&input[..256], 128, rows, None)
        });
        refuse("the buffer of scales has 4 elements, but must have 8", &mut |communicator, bytes| {
            let (codes, scales) = bytes.split_at_mut(256);
            let rows = Quantised::new(QuantFormat::Fp8Token, codes).with_scales(&mut scales[..4]);
            communicator.all_reduce_quant(&input[..256], 128, rows, None)
        });
        refuse(
            "Fp8Token needs a buffer of 8 bytes for its scales; pass it by with_scales",
            &mut |communicator, bytes| {
                let rows = Quantised::new(QuantFormat::Fp8Token, &mut bytes[..256]);
                communicator.all_reduce_quant(&input[..256], 128, rows, None)
            },
        );
        refuse("Fp8Static needs a scale; pass it by with_scale", &mut |communicator, bytes| {
            let rows = Quantised::new(QuantFormat::Fp8Static, &mut bytes[..256]);
            communicator.all_reduce_quant(&input[..256], 128, rows, None)
        });
        refuse("Fp8Token takes no scale", &mut |communicator, bytes| {
            let (codes, scales) = bytes.split_at_mut(256);
            let rows = Quantised::new(QuantFormat::Fp8Token, codes).with_scales(&mut scales[..8]).with_scale(1.0);
            communicator.all_reduce_quant(&input[..256], 128, rows, None)
        });
        refuse("rows have 64 columns, but must have a multiple of 128", &mut |communicator, bytes| {
            let (codes, scales) = bytes.split_at_mut(64);
            let rows = Quantised::new(QuantFormat::Fp8Group, codes).with_scales(&mut scales[..4]);
            communicator.all_reduce_quant(&input[..64], 64, rows, None)
        });
        refuse("those of more than 2048 need a buffer for the sum", &mut |communicator, bytes| {
            let rows = Quantised::new(QuantFormat::Fp8Static, bytes).with_scale(1.0);
            communicator.all_reduce_quant(&input, wide, rows, None)
        });
        refuse("the output of the sum has 8 elements, but must have 256", &mut |communicator, bytes| {
            let rows = Quantised::new(QuantFormat::Fp8Static, &mut bytes[..256]).with_scale(1.0);
            communicator.all_reduce_quant(&input[..256], 128, rows, Some(&mut sum[..8]))
        });
        refuse("output has 8 elements, but must have 16", &mut |communicator, bytes| {
            let rows = Quantised::new(QuantFormat::Fp8Static, &mut bytes[..16]).with_scale(1.0);
            let (mut output, mut sum) = (values(0, 8), values(0, 16));
            let outputs = (Some(&mut output[..]), &mut sum[..]);
            communicator.all_reduce_rms_norm_quant(&input[..16], None, &[1.0; 8], rows, outputs, RmsNorm::new(0.0))
        });
        refuse("bias has 4 elements, but must have 8", &mut |communicator, _| {
            let (mut output, mut sum) = (values(0, 16), values(0, 16));
            let (parameters, outputs) = ((&[1.0; 8][..], Some(&[1.0; 4][..])), (&mut output[..], &mut sum[..]));
            communicator.all_reduce_layer_norm_into(&input[..16], None, parameters, outputs, LayerNorm::new(0.0))
        });
        refuse("the index has 3 numbers and top_k is 2", &mut |communicator, _| {
            let experts = Experts::new(&input[..16], 8, (&[0, 1, 0], &[1.0; 3]), 2);
            communicator.moe_finalize_all_reduce(&experts, &mut values(0, 8))
        });
        refuse("the index has 2 numbers and top_k is 0", &mut |communicator, _| {
            let experts = Experts::new(&input[..16], 8, (&[0, 1], &[1.0; 2]), 0);
            communicator.moe_finalize_all_reduce(&experts, &mut values(0, 8))
        });
        refuse("the buffer of experts' rows has 0 elements, but must have whole rows of 0", &mut |communicator, _| {
            let experts = Experts::new(&input[..0], 0, (&[-1; 4], &[1.0; 4]), 1);
            communicator.moe_finalize_all_reduce(&experts, &mut values(0, 0))
        });
        // Rows whose bytes no number counts, of which there are none.
        for columns in [(1 << 28) + 8, (1 << 62) + 8, 1 << 63, (1 << 63) + 8] {
            refuse(&format!("rows have {columns} elements, but must have at most"), &mut |communicator, _| {
                let experts = Experts::new(&input[..0], columns, (&[-1; 4], &[1.0; 4]), 1);
                communicator.moe_finalize_all_reduce(&experts, &mut values(0, 32))
            });
            refuse(&format!("rows have {columns} elements, but must have at most"), &mut |communicator, _| {
                let rows = Quantised::new(QuantFormat::Fp8Static, &mut []).with_scale(1.0);
                communicator.all_reduce_quant(&input[..0], columns, rows, None)
            });
        }
        refuse("the buffer of experts' weights has 1 elements, but must have 2", &mut |communicator, _| {
            let experts = Experts::new(&input[..16], 8, (&[0, 1], &[1.0; 1]), 2);
            communicator.moe_finalize_all_reduce(&experts, &mut values(0, 8))
        });
        refuse("the buffer of shared rows has 16 elements, but must have 8", &mut |communicator, _| {
            let experts = Experts::new(&input[..16], 8, (&[0, 1], &[1.0; 2]), 2).with_shared(&input[..16]);
            communicator.moe_finalize_all_reduce(&experts, &mut values(0, 8))
        });
        refuse("weight has 16 elements, but must have 8", &mut |communicator, _| {
            let experts = Experts::new(&input[..16], 8, (&[0, 1], &[1.0; 2]), 2);
            let (mut output, mut sum) = (values(0, 8), values(0, 8));
            let outputs = (&mut output[..], &mut sum[..]);
            communicator.moe_finalize_all_reduce_rms_norm(&experts, None, &[1.0; 16], outputs, RmsNorm::new(0.0))
        });
    });
}
