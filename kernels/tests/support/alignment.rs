//! What an alignment is, in f64.

/// Pages that hold so many frames, in an order of their own, with holes.
pub fn pages(frames: usize, page_size: usize) -> Vec<u32> {
    let count = frames.div_ceil(page_size) as u32;
    (0..count).map(|page| (page * 5 + 3) % count + u32::from(page % 2 == 1) * count).collect()
}

fn standardised(column: &[f64]) -> Vec<f64> {
    let mean = column.iter().sum::<f64>() / column.len() as f64;
    let variance = column.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / column.len() as f64;
    // A single frame has all the attention of every row.
    let deviation = if variance == 0.0 { 1.0 } else { variance.sqrt() };
    column.iter().map(|value| (value - mean) / deviation).collect()
}

/// The median of seven, the row mirrored at its ends.
fn smoothed(row: &[f64]) -> Vec<f64> {
    let last = row.len() as isize - 1;
    if last < 3 {
        return row.to_vec();
    }
    let mirrored = |frame: isize| row[(if frame > last { 2 * last - frame } else { frame.abs() }) as usize];
    let at = |frame: isize| {
        let mut seven: Vec<f64> = (frame - 3..=frame + 3).map(mirrored).collect();
        seven.sort_by(f64::total_cmp);
        seven[3]
    };
    (0..=last).map(at).collect()
}

/// Sums over the heads of `head_set`, `[rows, frames]`; see `percept_kernels::alignment`. `q`: `[rows, heads, width]`, `k`:
/// `[pages, page_size, heads, width]`.
pub fn alignment(
    q: &[f64],
    k: &[f64],
    pages: &[u32],
    head_set: &[usize],
    [rows, heads, width, page_size, frames]: [usize; 5],
    scale: f64,
) -> Vec<f64> {
    let mut sum = vec![0.0; rows * frames];
    for &head in head_set {
        let mut map = vec![0.0; rows * frames];
        for (row, map) in map.chunks_mut(frames).enumerate() {
            for (frame, score) in map.iter_mut().enumerate() {
                let slot = pages[frame / page_size] as usize * page_size + frame % page_size;
                let query = &q[(row * heads + head) * width..][..width];
                let key = &k[(slot * heads + head) * width..][..width];
                *score = scale * query.iter().zip(key).map(|(a, b)| a * b).sum::<f64>();
            }
            let largest = map.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = map.iter().map(|score| (score - largest).exp()).sum();
            map.iter_mut().for_each(|score| *score = (*score - largest).exp() / total);
        }
        for frame in 0..frames {
            let column: Vec<f64> = (0..rows).map(|row| map[row * frames + frame]).collect();
            for (row, value) in standardised(&column).into_iter().enumerate() {
                map[row * frames + frame] = value;
            }
        }
        let smooth: Vec<f64> = map.chunks(frames).flat_map(smoothed).collect();
        sum.iter_mut().zip(smooth).for_each(|(sum, value)| *sum += value);
    }
    sum
}
