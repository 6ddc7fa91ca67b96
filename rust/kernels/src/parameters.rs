//! The structs that kernels take by value, laid out as in `kernels/`, which asserts the same sizes and offsets. A `u64` is
//! a device address unless its text says something else.

pub use crate::layout::Layout;
use crate::layout::laid_out;
pub use crate::report::{CONTROL_COPIES, CONTROL_COPY_BYTES, MARK_OFFSET, Report, SKIPPED_IS_THERE, TIME_UNIT_BITS};
use lamport_rs_protocol::geometry::MAX_WORLD_SIZE;
use lamport_rs_protocol::sentinel::Vector;

laid_out! {
    /// What every kernel is told about its group.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Group {
        /// The own block.
        pub own: u64,
        /// Bytes per slot.
        pub comm_size: u64,
        /// The [copies](crate::report) of the control words, and the operation in progress behind them; all 0 at first.
        pub control_copies: u64,
        /// The rank.
        pub rank: u32,
        /// The group's size.
        pub world_size: u32,
        /// By how much the operation's number is above that of the one before, and the other words of its header.
        pub header: Vector,
        /// The peers' blocks, rotated: `peers[i]` is rank `(rank + 1 + i) % world_size`.
        pub peers: [u64; MAX_WORLD_SIZE - 1],
        /// `int32[3]` of the table.
        pub counters: u64,
        /// `int64[2]` of the table.
        pub extents: u64,
        /// A [`Report`] in pinned host memory.
        pub report: u64,
        /// How long to wait for what a peer sends in any case, in units of 2^[`TIME_UNIT_BITS`] ns. `u32::MAX`: for ever.
        pub first_hand_timeout: u32,
        /// Likewise for what it sends once it has heard of the others.
        pub second_hand_timeout: u32,
        /// 1 if the ranks compare what they run, otherwise 0.
        pub is_checked: u32,
        /// 0.
        pub reserved: u32,
    }
    = Group: Group;

    /// Parameters of an all-reduce.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct AllReduceParameters {
        /// The group.
        pub group: Group,
        /// The tensor.
        pub input: u64,
        /// Where the sum goes. May be the input.
        pub output: u64,
        /// Bytes of the tensor, a multiple of 2.
        pub bytes: u64,
        /// Bytes of the operation's regions.
        pub region_bytes: u32,
        /// Vectors that each rank sums: all of them (one-shot), or those of a shard (two-shot).
        pub vectors: u32,
    }
    = AllReduce: AllReduceParameters;

    /// Parameters of an all-reduce with a residual and RMSNorm.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub struct AllReduceRmsNormParameters {
        /// The group.
        pub group: Group,
        /// The rows to sum.
        pub input: u64,
        /// Added to the sum.
        pub residual: u64,
        /// Where the normalised rows go. May be the input.
        pub output: u64,
        /// Where the sum goes. May be the residual.
        pub residual_output: u64,
        /// How rows are normalised.
        pub norm: RmsNorm,
        /// Bytes of the operation's regions.
        pub region_bytes: u32,
        /// Rows.
        pub tokens: u32,
        /// 16-byte vectors of a row.
        pub row_vectors: u32,
        /// 0.
        pub reserved: u32,
    }
    = AllReduceRmsNorm: AllReduceRmsNormParameters;

    /// Parameters of an all-reduce with a residual and layer norm.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub struct AllReduceLayerNormParameters {
        /// As with RMSNorm, without a bias of the weights.
        pub base: AllReduceRmsNormParameters,
        /// One bias per column, of the weights' dtype, or 0.
        pub bias: u64,
    }
    = AllReduceLayerNorm: AllReduceLayerNormParameters;

    /// Parameters of an all-reduce with a residual, RMSNorm and a quantiser.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub struct AllReduceRmsNormQuantParameters {
        /// As without a quantiser; `output` is 0 if the normalised rows are not asked for.
        pub base: AllReduceRmsNormParameters,
        /// Where the quantised rows go.
        pub quantised: u64,
        /// Where their scales go, or, if they are given, are.
        pub scales: u64,
        /// The quantiser.
        pub format: u32,
        /// Scales of a row.
        pub row_scales: u32,
        /// Scales from one to the same one of the next row.
        pub scale_row_stride: u32,
        /// Scales from one to the next of its row.
        pub scale_stride: u32,
    }
    = AllReduceRmsNormQuant: AllReduceRmsNormQuantParameters;

    /// Likewise with scales that are bytes; strides are of bytes, in `base` to the next of 32 rows and to the fourth scale.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub struct AllReduceRmsNormQuantBlocksParameters {
        /// With where the first scale of the whole tensor is.
        pub base: AllReduceRmsNormQuantParameters,
        /// The tensor's scale that is given, or 0.
        pub given_scale: u64,
        /// In the whole tensor: the number of the first of these rows.
        pub first_row: u32,
        /// To that of the 32nd row from it, within 128 rows.
        pub scale_rows_32_stride: u32,
        /// To that of the 128th row from it.
        pub scale_rows_128_stride: u32,
        /// Rows behind these that only the tensor of scales has.
        pub padding_rows: u32,
    }
    = AllReduceRmsNormQuantBlocks: AllReduceRmsNormQuantBlocksParameters;

    /// The experts of a layer on this rank, whose rows are finalised.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Experts {
        /// The rows that they made.
        pub rows: u64,
        /// `int32[tokens, per_token]`: numbers of rows, or -1.
        pub index: u64,
        /// As many weights.
        pub weights: u64,
        /// A row for each token, or 0.
        pub shared_rows: u64,
        /// How many rows they made.
        pub row_count: u32,
        /// Experts of a token.
        pub per_token: u32,
        /// 1 if the weights are float32, 0 if they have the dtype of the rows.
        pub has_float32_weights: u32,
        /// 0.
        pub reserved: u32,
    }
    = Experts: Experts;

    /// Parameters of an all-reduce of rows that experts made.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub struct MoeFinalizeParameters {
        /// As of rows that are there; `input` is 0.
        pub base: AllReduceRmsNormParameters,
        /// The experts.
        pub experts: Experts,
    }
    = MoeFinalize: MoeFinalizeParameters;

    /// RMSNorm of a row.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub struct RmsNorm {
        /// One weight per column.
        pub weight: u64,
        /// `1 / columns`.
        pub inverse_count: f32,
        /// Added to the mean of squares.
        pub epsilon: f32,
        /// Added to each weight.
        pub weight_bias: f32,
        /// 1 if the weights are float32, 0 if they have the dtype of the rows.
        pub has_float32_weight: u32,
    }
    = RmsNorm: RmsNorm;

    /// Parameters of `fill`.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct FillParameters {
        /// A multiple of 4.
        pub begin: u64,
        /// How many 32-bit words.
        pub words: u64,
    }
    = FillParameters: FillParameters;

    /// Parameters of `verify`.
    #[repr(C, align(16))]
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct VerifyParameters {
        /// The group. Its control words and report are not used.
        pub group: Group,
        /// A word that the host can read. Bit r: rank r's vector was wrong, or it or its verdict did not arrive. Bit
        /// 16 + r: rank r says that of a rank. If it is 0 on one rank, it is on all.
        pub result: u64,
        /// 0.
        pub reserved: u64,
        /// Each rank's vector, by rank; the same on every rank. No word may be the sentinel.
        pub nonces: [Vector; MAX_WORLD_SIZE],
    }
    = VerifyParameters: VerifyParameters;

    /// Parameters of `skip`.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct SkipParameters {
        /// The group. The first word of its header: how many calls.
        pub group: Group,
    }
    = SkipParameters: SkipParameters;

    /// One matrix of a MiniMax operation. Rows begin at multiples of 16 bytes.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub struct MinimaxMatrix {
        /// The first row's first own column.
        pub input: u64,
        /// The own columns' weights: a multiple of 16.
        pub weight: u64,
        /// The result's first row. May be `input`, if the strides are equal.
        pub output: u64,
        /// Bytes from a row of the input to the next.
        pub input_row_bytes: u32,
        /// Bytes from a row of the output to the next.
        pub output_row_bytes: u32,
        /// 16-byte vectors of a row on this rank.
        pub vectors: u32,
        /// Warps of a block that work on the matrix: from the plan.
        pub warps: u32,
        /// `1 / (width × world_size)`, with the own columns as width.
        pub inverse_count: f32,
        /// 0.
        pub reserved: u32,
    }
    = MinimaxMatrix: MinimaxMatrix;

    /// Parameters of a MiniMax operation on one or two matrices.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub struct MinimaxParameters<const MATRICES: usize> {
        /// The group.
        pub group: Group,
        /// The matrices; with two, queries first.
        pub matrix: [MinimaxMatrix; MATRICES],
        /// Bytes of the operation's regions, for `tokens × MATRICES × 4` bytes.
        pub region_bytes: u32,
        /// Rows.
        pub tokens: u32,
        /// Added to the variance.
        pub epsilon: f32,
        /// 0.
        pub reserved: u32,
    }
    = MinimaxRms: MinimaxParameters<1>, MinimaxRmsQk: MinimaxParameters<2>;
}
