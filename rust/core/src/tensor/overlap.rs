//! Which tensors have memory in common, and which have some twice.

use super::Tensor;

impl Tensor {
    /// The bytes from the first element to the last, for overlap checks.
    pub fn span(&self) -> std::ops::Range<usize> {
        let last: usize = self
            .shape
            .as_slice()
            .iter()
            .zip(self.strides.as_slice())
            .map(|(size, stride)| size.saturating_sub(1) * stride)
            .sum();
        let start = self.pointer as usize;
        if self.elements() == 0 { start..start } else { start..start + (last + 1) * self.dtype.size() }
    }

    /// Whether a byte of this contiguous tensor is one of `other`, whose rows are evenly spaced. What lies between those
    /// rows is not its.
    pub fn overlaps(&self, other: &Self) -> bool {
        let (own, span) = (self.span(), other.span());
        if own.is_empty() || span.is_empty() || own.start >= span.end || span.start >= own.end {
            return false;
        }
        let row = other.columns() * other.dtype.size();
        let Some(stride @ 1..) = other.row_stride().map(|stride| stride * other.dtype.size()) else { return true };
        // The first row that ends behind the own start.
        let first = (own.start + 1).saturating_sub(span.start + row).div_ceil(stride);
        first < other.rows() && span.start + first * stride < own.end
    }

    /// Whether two elements of this tensor may be one. No for strides that each reach beyond all shorter ones
    /// together, as those of every slice, transposition and split of a dense tensor do.
    pub fn shares_memory_within(&self) -> bool {
        if self.is_contiguous() || self.elements() == 0 {
            return false;
        }
        let mut steps: Vec<(usize, usize)> = self.steps().collect();
        steps.sort_unstable();
        let mut reach = 0;
        steps.iter().any(|&(stride, size)| {
            let is_short = stride <= reach;
            reach += stride * (size - 1);
            is_short
        })
    }

    /// Whether a byte of this tensor may be one of `other`. Exact where one of them is contiguous and the other has
    /// evenly spaced rows, and where both have the same strides in bytes, as parts of one tensor do.
    pub fn shares_memory_with(&self, other: &Self) -> bool {
        let (own, span) = (self.span(), other.span());
        if own.is_empty() || span.is_empty() || own.start >= span.end || span.start >= own.end {
            return false;
        }
        if self.is_contiguous() {
            return self.overlaps(other);
        }
        if other.is_contiguous() {
            return other.overlaps(self);
        }
        let distance = span.start as i64 - own.start as i64;
        self.common_steps(other).is_none_or(|steps| can_step(distance, &steps))
    }

    /// Strides and sizes of the dimensions that have more than one element.
    fn steps(&self) -> impl Iterator<Item = (usize, usize)> {
        let (sizes, strides) = (self.shape.values, self.strides.values);
        (0..self.shape.count).map(move |at| (strides[at], sizes[at])).filter(|&(_, size)| size > 1)
    }

    /// Longest first: each stride in bytes, and how often it may be taken on the way from a byte of this tensor to one of
    /// `other`, backwards and forwards. `None` if their strides differ, or their dimensions.
    fn common_steps(&self, other: &Self) -> Option<Vec<(i64, i64, i64)>> {
        if self.shape.count != other.shape.count {
            return None;
        }
        let is_whole = self.has_whole_rows() && other.has_whole_rows();
        let mut steps = Vec::new();
        for (own, others) in self.byte_steps(is_whole).zip(other.byte_steps(is_whole)) {
            let ((stride, count), (another, others)) = (own, others);
            if count > 1 && others > 1 && stride != another {
                return None;
            }
            steps.push((if count > 1 { stride } else { another }, others - 1, count - 1));
        }
        steps.sort_unstable_by_key(|&(stride, ..)| std::cmp::Reverse(stride));
        Some(steps)
    }

    /// Whether the elements of a row lie side by side.
    fn has_whole_rows(&self) -> bool {
        let last = self.shape.count.wrapping_sub(1);
        self.columns() <= 1 || self.strides.values.get(last) == Some(&1)
    }

    /// Strides in bytes and sizes of all dimensions, the last of which is an element's bytes or, if so asked, a row's.
    fn byte_steps(&self, of_rows: bool) -> impl Iterator<Item = (i64, i64)> {
        let (sizes, strides, bytes) = (self.shape.values, self.strides.values, self.dtype.size());
        let (outer, inner) =
            if of_rows { (self.shape.count.saturating_sub(1), self.columns()) } else { (self.shape.count, 1) };
        let outer = (0..outer).map(move |at| ((strides[at] * bytes) as i64, sizes[at] as i64));
        outer.chain([(1, (inner * bytes) as i64)])
    }
}

/// Whether `distance` is a sum of these strides, each taken at most so often backwards and forwards.
fn can_step(distance: i64, steps: &[(i64, i64, i64)]) -> bool {
    let Some((&(stride, backwards, forwards), shorter)) = steps.split_first() else { return distance == 0 };
    if stride == 0 {
        return can_step(distance, shorter);
    }
    // What the shorter ones can make up for. It is less than a stride in tensors that share no memory within.
    let back: i64 = shorter.iter().map(|(stride, backwards, _)| stride * backwards).sum();
    let forth: i64 = shorter.iter().map(|(stride, _, forwards)| stride * forwards).sum();
    let first = (distance - forth).div_euclid(stride).max(-backwards);
    let last = (distance + back).div_euclid(stride).min(forwards);
    (first..=last).any(|times| can_step(distance - times * stride, shorter))
}

#[cfg(test)]
mod tests {
    use super::super::Dtype;
    use super::super::tests::tensor;
    use super::*;

    #[test]
    fn what_lies_between_the_rows_of_a_tensor_does_not_overlap_it() {
        // Bytes 4096 to 4111, 4144 to 4159 and 4192 to 4207.
        let rows = tensor(&[3, 8], &[24, 1]);
        let overlapping = |start: usize, elements: usize| {
            let mut other = tensor(&[elements], &[1]);
            other.pointer = std::ptr::without_provenance_mut(start);
            other.overlaps(&rows)
        };
        for (start, end) in [(4064, 4096), (4112, 4144), (4160, 4192), (4208, 4300), (4112, 4114)] {
            assert!(!overlapping(start, (end - start) / 2), "{start} to {end}");
        }
        for (start, end) in [(4064, 4098), (4110, 4144), (4112, 4146), (4158, 4160), (4000, 5000), (4206, 4300)] {
            assert!(overlapping(start, (end - start) / 2), "{start} to {end}");
        }
        assert!(!overlapping(4100, 0));
        assert!(tensor(&[8], &[1]).overlaps(&tensor(&[3, 8], &[0, 1])));
    }

    #[test]
    fn elements_share_memory_within_a_tensor_whose_strides_are_too_short() {
        for (shape, strides) in [(&[2usize, 5, 8][..], &[240usize, 24, 1][..]), (&[5, 8], &[1, 5]), (&[4], &[3])] {
            assert!(!tensor(shape, strides).shares_memory_within(), "{strides:?}");
        }
        for (shape, strides) in [(&[2usize, 8][..], &[0usize, 1][..]), (&[3, 8], &[4, 1]), (&[2, 2, 2], &[3, 2, 1])] {
            assert!(tensor(shape, strides).shares_memory_within(), "{strides:?}");
        }
        assert!(!tensor(&[1, 8], &[0, 1]).shares_memory_within());
        assert!(!tensor(&[0, 8], &[0, 1]).shares_memory_within());
    }

    /// Every byte of both, compared.
    fn share_a_byte(one: &Tensor, other: &Tensor) -> bool {
        let places = |tensor: &Tensor| {
            let start = tensor.pointer as usize;
            let mut places: Vec<_> = (start..start + tensor.dtype.size()).collect();
            for (stride, size) in tensor.steps() {
                let steps = (0..size).map(|index| index * stride * tensor.dtype.size());
                places = steps.flat_map(|step| places.iter().map(move |place| place + step)).collect();
            }
            places
        };
        let known = places(one);
        places(other).iter().any(|place| known.contains(place))
    }

    #[test]
    fn parts_of_one_tensor_share_memory_exactly_where_they_have_a_common_element() {
        for strides in [&[24usize, 1][..], &[1, 24], &[48, 2], &[17, 1]] {
            for (rows, columns) in [(3, 8), (3, 16), (1, 8)] {
                for start in 0..120 {
                    let one = tensor(&[3, 8], strides);
                    let mut other = tensor(&[rows, columns], strides);
                    other.pointer = std::ptr::without_provenance_mut(4096 + 2 * start);
                    let expected = share_a_byte(&one, &other);
                    assert_eq!(one.shares_memory_with(&other), expected, "{rows} by {columns}, {strides:?} at {start}");
                    assert_eq!(other.shares_memory_with(&one), expected, "{strides:?} at {start}, the other way round");
                }
            }
        }
    }

    #[test]
    fn rows_and_their_scales_beside_them_share_memory_exactly_where_they_have_a_common_byte() {
        let mut codes = tensor(&[3, 8], &[16, 1]);
        codes.dtype = Dtype::Float8E4M3;
        let mut scales = tensor(&[3, 2], &[4, 1]);
        scales.dtype = Dtype::Float32;
        for start in 0..120 {
            scales.pointer = std::ptr::without_provenance_mut(4096 - 60 + start);
            let expected = share_a_byte(&codes, &scales);
            assert_eq!(codes.shares_memory_with(&scales), expected, "{start}");
            assert_eq!(scales.shares_memory_with(&codes), expected, "{start}, the other way round");
        }
    }

    #[test]
    fn tensors_of_unlike_strides_in_the_same_memory_are_taken_to_share_it() {
        let (one, mut other) = (tensor(&[3, 8], &[24, 1]), tensor(&[8, 3], &[3, 25]));
        assert!(one.shares_memory_with(&other));
        other.pointer = std::ptr::without_provenance_mut(8192);
        assert!(!one.shares_memory_with(&other));
    }
}
