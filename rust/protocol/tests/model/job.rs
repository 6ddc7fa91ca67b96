//! What the ranks exchange: sizes and payloads by operation, and what each receiver must therefore get.
//!
//! Everything repeats after [`PERIOD`] operations, which makes the state graph finite while the ranks go on for ever:
//! what is proven on it holds for any number of operations.

use lamport_rs_protocol::exchange::{Extent, Member};
use lamport_rs_protocol::geometry::Geometry;
use lamport_rs_protocol::sentinel::{SENTINEL, VECTOR_BYTES, VECTOR_WORDS, Vector, scrub};

/// Operations after which slots (3), sizes (4) and payloads repeat. Twelve, not fewer: a word of the second vector may
/// be used in every other turn of its slot only, and what it held six operations ago must not pass for today's data.
pub const PERIOD: usize = 12;

/// Vectors per region, by operation. Over [`PERIOD`] operations every size follows every size, both from one operation
/// to the next (the extent to clear) and from one use of a slot to the next (regions of different ranks overlap).
const SIZES: [usize; 4] = [1, 2, 2, 1];
const MAX_VECTORS: usize = 2;

/// One group and the way its operations are cut.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    pub world_size: usize,
    /// Independently arriving parts of a vector: 1 (whole), 2 (word 0; words 1 to 3) or 4 (every word on its own).
    pub parts: usize,
    /// Whether every operation is of one vector. Otherwise sizes vary between one and two.
    pub one_size: bool,
    pub chunk_vectors: usize,
    pub lead_chunks: usize,
}

impl Job {
    /// Varying sizes, two parts, the whole region in one chunk.
    pub fn of(world_size: usize) -> Self {
        Self { world_size, parts: 2, one_size: false, chunk_vectors: MAX_VECTORS, lead_chunks: 1 }
    }

    pub fn geometry(&self) -> Geometry {
        let comm_size = self.world_size * MAX_VECTORS * VECTOR_BYTES;
        Geometry::new(self.world_size as i64, comm_size as i64).expect("a shape within the limits")
    }

    pub fn member(&self, rank: usize) -> Member {
        Member { rank, geometry: self.geometry() }
    }

    pub fn vectors(&self, operation: usize) -> usize {
        if self.one_size { 1 } else { SIZES[operation % SIZES.len()] }
    }

    pub fn extent(&self, operation: usize) -> Extent {
        let message_bytes = self.vectors(operation) * VECTOR_BYTES;
        Extent {
            region_bytes: self.geometry().region_bytes(message_bytes).expect("a slot holds the largest operation"),
            chunk_vectors: self.chunk_vectors,
            lead_chunks: self.lead_chunks,
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

/// What every receiver must get of it.
pub fn expected(rank: usize, operation: usize, at: usize) -> Vector {
    scrub(contribution(rank, operation, at))
}

const TAG: u32 = 0x4000_0000;

fn tag(rank: usize, operation: usize, at: usize, word: usize) -> u32 {
    TAG | (rank as u32) << 16 | (operation as u32) << 8 | (at as u32) << 4 | word as u32
}

/// A word as a reader of a counterexample wants to see it.
pub fn describe(word: u32) -> String {
    match word {
        SENTINEL => "sentinel".into(),
        0 => "0".into(),
        _ if word & 0xff00_0000 == TAG => {
            let field = |shift: u32, mask: u32| word >> shift & mask;
            format!("r{}:op{}:v{}:w{}", field(16, 0xff), field(8, 0xff), field(4, 0xf), field(0, 0xf))
        }
        _ => format!("{word:#010x}"),
    }
}

/// A vector as a reader of a counterexample wants to see it.
pub fn describe_vector(vector: Vector) -> String {
    format!("[{}]", vector.map(describe).join(", "))
}
