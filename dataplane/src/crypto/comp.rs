//! IPCOMP's deflate (RFC 2394; `crypto/deflate.c`, `net/xfrm/xfrm_ipcomp.c`).
//!
//! Raw deflate with Linux's window of 2 KiB and default level: Linux inflates
//! with that window, so nothing here may refer further back. What it makes of a
//! packet need not be Linux's bytes; each inflates the other's.
//!
//! A state takes some 200 KiB and is reset for each packet: a worker has one,
//! as Linux has one per CPU, and SAs have none.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// `DEFLATE_DEF_WINBITS`.
const WINDOW_BITS: u8 = 11;

/// A worker's compressor and decompressor.
#[derive(Debug)]
pub struct Deflate {
    compress: Compress,
    decompress: Decompress,
}

impl Default for Deflate {
    fn default() -> Self {
        Self {
            compress: Compress::new_with_window_bits(Compression::default(), false, WINDOW_BITS),
            decompress: Decompress::new_with_window_bits(false, WINDOW_BITS),
        }
    }
}

impl Deflate {
    /// Compresses `input` into `output`; the compressed length. `None` when it does not
    /// fit: give it one byte less than `input` has and what does not fit is not worth sending.
    pub fn compress(&mut self, input: &[u8], output: &mut [u8]) -> Option<usize> {
        self.compress.reset();
        let status = self
            .compress
            .compress(input, output, FlushCompress::Finish)
            .ok()?;
        (status == Status::StreamEnd)
            .then(|| usize::try_from(self.compress.total_out()).ok())
            .flatten()
    }

    /// Decompresses `input` into `output`; the length. `None` when it is no whole deflate
    /// stream or would not fit, however much it expands to: no more than `output` is written.
    /// Bytes behind the stream are ignored, as Linux does.
    pub fn decompress(&mut self, input: &[u8], output: &mut [u8]) -> Option<usize> {
        self.decompress.reset(false);
        let status = self
            .decompress
            .decompress(input, output, FlushDecompress::Finish)
            .ok()?;
        (status == Status::StreamEnd)
            .then(|| usize::try_from(self.decompress.total_out()).ok())
            .flatten()
    }
}
