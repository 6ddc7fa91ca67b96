//! What the ranks exchange: sizes and payloads by operation, and what each receiver must therefore get.
//!
//! Everything repeats after [`PERIOD`] operations, which makes the state graph finite while the ranks go on for ever:
//! what is proven on it holds for any number of operations.

use lamport_rs_protocol::algorithm::Algorithm;
use lamport_rs_protocol::exchange::{Extent, Member};
use lamport_rs_protocol::geometry::Geometry;
use lamport_rs_protocol::header::Header;
use lamport_rs_protocol::sentinel::{SENTINEL, VECTOR_BYTES, VECTOR_WORDS, Vector};

/// Operations after which slots (3), sizes (4) and payloads repeat. Twelve, not fewer: a word of the second vector may
/// be used in every other turn of its slot only, and what it held six operations ago must not pass for today's data.
pub const PERIOD: usize = 12;

/// Algorithms of a mixed job, by operation. Over [`PERIOD`] operations each follows each, both from one operation to the
/// next and from one use of a slot to the next.
const MIXED: [Algorithm; PERIOD] = {
    use Algorithm::{OneShot as One, TwoShot as Two};
    [One, Two, Two, One, One, Two, Two, One, Two, One, Two, One]
};

/// Vectors per region (of a half of it in two-shot), by operation. Over [`PERIOD`] operations every size follows every size, both from one operation
/// to the next (the extent to clear) and from one use of a slot to the next (regions of different ranks overlap).
const SIZES: [usize; 4] = [1, 2, 2, 1];
const MAX_VECTORS: usize = 2;

/// One group and the way its operations are cut.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    pub world_size: usize,
    /// Independently arriving parts of a vector: 1 (whole), 2 (word 0; words 1 to 3) or 4 (every word on its own).
    pub parts: usize,
    /// How the operations reduce; `None` for a mix.
    pub algorithm: Option<Algorithm>,
    /// Whether every operation is of one vector, or one per shard. Otherwise sizes vary between one and two.
    pub one_size: bool,
    pub chunk_vectors: usize,
    pub lead_chunks: usize,
    /// Which operations have headers.
    pub headers: Headers,
}

/// Which operations have headers, which all ranks must find equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Headers {
    None,
    /// All of them.
    All,
    /// Of each two the first: the second is a further part of the same message.
    EveryOther,
    /// All, and in the operation of this number the last rank's is another, and so is its size: whatever the algorithm,
    /// that is the last operation that any rank begins.
    Disagree(usize),
}

impl Job {
    /// One-shot, varying sizes, two parts, the whole region in one chunk.
    pub fn of(world_size: usize) -> Self {
        let algorithm = Some(Algorithm::OneShot);
        Self {
            world_size,
            algorithm,
            parts: 2,
            one_size: false,
            chunk_vectors: MAX_VECTORS,
            lead_chunks: 1,
            headers: Headers::None,
        }
    }

    /// Likewise, all in two shots.
    pub fn two_shot(world_size: usize) -> Self {
        Self { algorithm: Some(Algorithm::TwoShot), ..Self::of(world_size) }
    }

    /// Likewise, now in one shot and now in two.
    pub fn mixed(world_size: usize) -> Self {
        Self { algorithm: None, ..Self::of(world_size) }
    }

    pub fn geometry(&self) -> Geometry {
        let largest = (0..PERIOD).map(|operation| self.message_bytes(operation)).max();
        let comm_size = self.world_size * largest.expect("there are operations");
        Geometry::new(self.world_size as i64, comm_size as i64).expect("a shape within the limits")
    }

    pub fn member(&self, rank: usize) -> Member {
        Member { rank, geometry: self.geometry() }
    }

    pub fn algorithm(&self, operation: usize) -> Algorithm {
        self.algorithm.unwrap_or(MIXED[operation])
    }

    /// Of a region, or of a shard.
    pub fn vectors(&self, operation: usize) -> usize {
        if self.one_size { 1 } else { SIZES[operation % SIZES.len()] }
    }

    /// Whether vector `at` of `shard` is beyond the tensor's end. Of the sizes of [`SIZES`], the third lacks a vector,
    /// and the fourth is a single one, so that all shards but the first are padding.
    fn is_padding(&self, shard: usize, operation: usize, at: usize) -> bool {
        match operation % SIZES.len() {
            2 => shard + 1 == self.world_size && at + 1 == self.vectors(operation),
            3 => shard > 0,
            _ => false,
        }
    }

    /// What `rank` contributes to vector `at` of `shard`, not scrubbed.
    pub fn contribution_to(&self, shard: usize, rank: usize, operation: usize, at: usize) -> Vector {
        let padding = self.is_padding(shard, operation, at);
        if padding { [0; VECTOR_WORDS] } else { contribution(rank, operation, shard * MAX_VECTORS + at) }
    }

    /// The sum of vector `at` of `shard`, not scrubbed: as it depends on contributions that have been checked, it need not
    /// be made of them, but may be the sentinel where they are not.
    pub fn sum(&self, shard: usize, operation: usize, at: usize) -> Vector {
        if self.is_padding(shard, operation, at) {
            return [0; VECTOR_WORDS];
        }
        std::array::from_fn(|word| match (operation, word) {
            (5, _) | (8, 0) | (10, 3) => SENTINEL,
            _ => SUM_TAG | tag(shard, operation, at, word),
        })
    }

    fn message_bytes(&self, operation: usize) -> usize {
        let units = match self.algorithm(operation) {
            Algorithm::OneShot => self.vectors(operation),
            Algorithm::TwoShot => self.vectors(operation) * self.world_size,
        };
        self.algorithm(operation).message_bytes(units, VECTOR_BYTES, self.world_size)
    }

    /// Whether `rank` does something else than its peers in `operation`.
    fn differs(&self, rank: usize, operation: usize) -> bool {
        self.headers == Headers::Disagree(operation) && rank + 1 == self.world_size
    }

    /// Whether the operation must end in a mismatch on every rank.
    pub fn must_fail(&self, operation: usize) -> bool {
        self.headers == Headers::Disagree(operation)
    }

    /// The header of `rank`, if the operation has one.
    pub fn header(&self, rank: usize, operation: usize) -> Option<Header> {
        let has_one = match self.headers {
            Headers::None => false,
            Headers::All | Headers::Disagree(_) => true,
            Headers::EveryOther => operation.is_multiple_of(2),
        };
        let kind = u32::from(self.differs(rank, operation));
        has_one.then(|| std::array::from_fn(|word| HEADER_TAG | kind << 16 | (operation as u32) << 8 | word as u32))
    }

    pub fn extent(&self, rank: usize, operation: usize) -> Extent {
        // An operation of another size is at hand.
        let of = if self.differs(rank, operation) { operation + 1 } else { operation };
        let region_bytes = self.geometry().region_bytes(self.message_bytes(of % PERIOD));
        Extent {
            region_bytes: region_bytes.expect("a slot holds the largest operation"),
            chunk_vectors: self.chunk_vectors,
            lead_chunks: self.lead_chunks,
            header: self.header(rank, operation),
        }
    }

    /// The words of a vector that belong to `part`.
    pub fn words(&self, part: usize) -> std::ops::Range<usize> {
        match (self.parts, part) {
            (1, _) => 0..VECTOR_WORDS,
            (2, 0) => 0..1,
            (2, _) => 1..VECTOR_WORDS,
            _ => part..part + 1,
        }
    }
}

/// What `rank` contributes, not scrubbed: words that name where they belong, and in some operations the sentinel.
pub fn contribution(rank: usize, operation: usize, at: usize) -> Vector {
    std::array::from_fn(|word| match (operation, word) {
        (2, 0) | (7, _) | (9, 3) => SENTINEL,
        _ => tag(rank, operation, at, word),
    })
}

const TAG: u32 = 0x4000_0000;
const SUM_TAG: u32 = 0x4100_0000;
const HEADER_TAG: u32 = 0x4200_0000;

fn tag(rank: usize, operation: usize, at: usize, word: usize) -> u32 {
    TAG | (rank as u32) << 16 | (operation as u32) << 8 | (at as u32) << 4 | word as u32
}

/// A word as a reader of a counterexample wants to see it.
pub fn describe(word: u32) -> String {
    match word {
        SENTINEL => "sentinel".into(),
        0 => "0".into(),
        _ if word & 0xff00_0000 == HEADER_TAG => {
            format!("header{}:op{}:w{}", word >> 16 & 0xff, word >> 8 & 0xff, word & 0xf)
        }
        _ if matches!(word & 0xff00_0000, TAG | SUM_TAG) => {
            let field = |shift: u32, mask: u32| word >> shift & mask;
            let kind = if word & SUM_TAG == SUM_TAG { "sum:" } else { "" };
            format!("{kind}r{}:op{}:v{}:w{}", field(16, 0xff), field(8, 0xff), field(4, 0xf), field(0, 0xf))
        }
        _ => format!("{word:#010x}"),
    }
}

/// A vector as a reader of a counterexample wants to see it.
pub fn describe_vector(vector: Vector) -> String {
    format!("[{}]", vector.map(describe).join(", "))
}
