//! Layers compressed on a few threads, with bytes that depend on nothing but the layer and the method: not on
//! threads, time or run.

use std::{
    collections::VecDeque,
    io::{self, Read},
    sync::{Arc, Mutex, mpsc},
};

use super::method::{Encoders, Method};
use crate::image::{Digest, Hasher};

/// More do not pay: whoever reads and hashes the layer is the bottleneck by then.
const THREADS_LIMIT: usize = 16;

/// What was read and what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compressed {
    /// Digest of what is stored.
    pub digest: Digest,
    /// Bytes of what is stored.
    pub size: u64,
    /// Digest of the input, by the algorithm that was asked for.
    pub input_digest: Digest,
    /// Bytes of the input.
    pub input_size: u64,
}

/// Threads that compress blocks, for any number of layers at a time. They end with the pool.
#[derive(Clone, Debug)]
pub struct Pool {
    jobs: mpsc::SyncSender<Job>,
    threads: usize,
}

impl Pool {
    /// Starts the threads, at least one.
    pub fn new(threads: usize) -> Self {
        let threads = threads.clamp(1, THREADS_LIMIT);
        let (jobs, waiting) = mpsc::sync_channel(threads);
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..threads {
            let waiting = Arc::clone(&waiting);
            std::thread::spawn(move || work(&waiting));
        }
        // Only the threads hold `waiting` then, so that sending to dead ones fails instead of waiting.
        Self { jobs, threads }
    }

    /// How many threads there are.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Reads `input` to its end and hands what is to be stored, piece by piece, to `sink`.
    ///
    /// # Errors
    /// Those of `input` and of `sink`.
    pub fn compress(
        &self,
        method: Method,
        mut input: impl Read,
        input_hasher: Hasher,
        sink: impl FnMut(Vec<u8>) -> io::Result<()>,
    ) -> io::Result<Compressed> {
        let mut output = Output {
            sink,
            hasher: Hasher::sha256(),
        };
        let mut input_hasher = input_hasher;
        // One for each thread, and two that wait, so that no thread does.
        let most = self.threads + 2;
        let mut in_flight: VecDeque<mpsc::Receiver<io::Result<Encoded>>> = VecDeque::with_capacity(most);
        // Blocks that were compressed are filled again: fresh memory costs as much as reading into it.
        let mut spare = Vec::new();
        loop {
            let block = read_block(&mut input, method.block(), &mut spare)?;
            // An empty layer still needs a stream.
            if block.is_empty() && input_hasher.length() > 0 {
                break;
            }
            input_hasher.update(&block);
            if method == Method::Keep {
                output.write(block)?;
            } else {
                let (reply, result) = mpsc::sync_channel(1);
                let job = Job { method, block, reply };
                self.jobs.send(job).map_err(|_| worker_died())?;
                in_flight.push_back(result);
                if in_flight.len() == most
                    && let Some(first) = in_flight.pop_front()
                {
                    spare.push(output.take(&first)?);
                }
            }
            if input_hasher.length() == 0 {
                break;
            }
        }
        for result in in_flight {
            output.take(&result)?;
        }
        Ok(Compressed {
            size: output.hasher.length(),
            digest: output.hasher.finish(),
            input_size: input_hasher.length(),
            input_digest: input_hasher.finish(),
        })
    }
}

#[derive(Debug)]
struct Job {
    method: Method,
    block: Vec<u8>,
    reply: mpsc::SyncSender<io::Result<Encoded>>,
}

#[derive(Debug)]
struct Encoded {
    bytes: Vec<u8>,
    /// The input, whose memory is used again.
    block: Vec<u8>,
}

fn work(waiting: &Mutex<mpsc::Receiver<Job>>) {
    let mut encoders = Encoders::default();
    loop {
        let job = match waiting.lock() {
            Ok(jobs) => jobs.recv(),
            Err(_) => return,
        };
        let Ok(Job { method, block, reply }) = job else {
            return;
        };
        let result = encoders
            .encode(method, &block)
            .map(|bytes| Encoded { bytes, block });
        // Who waited has given up when this fails.
        let _ = reply.send(result);
    }
}

/// A full block, or what is left.
fn read_block(input: &mut impl Read, size: usize, spare: &mut Vec<Vec<u8>>) -> io::Result<Vec<u8>> {
    let mut block = spare.pop().unwrap_or_else(|| Vec::with_capacity(size));
    block.clear();
    input.take(size as u64).read_to_end(&mut block)?;
    Ok(block)
}

struct Output<S> {
    sink: S,
    hasher: Hasher,
}

impl<S: FnMut(Vec<u8>) -> io::Result<()>> Output<S> {
    /// Writes a block's result and gives the block back.
    fn take(&mut self, result: &mpsc::Receiver<io::Result<Encoded>>) -> io::Result<Vec<u8>> {
        let encoded = result.recv().map_err(|_| worker_died())??;
        self.write(encoded.bytes)?;
        Ok(encoded.block)
    }

    fn write(&mut self, bytes: Vec<u8>) -> io::Result<()> {
        self.hasher.update(&bytes);
        (self.sink)(bytes)
    }
}

fn worker_died() -> io::Error {
    io::Error::other("a compression thread died")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;
    use crate::image::compress::{Compression, Decoder};

    fn compress(method: Method, input: &[u8], threads: usize) -> (Compressed, Vec<u8>) {
        let mut stream = Vec::new();
        let compressed = Pool::new(threads)
            .compress(method, input, Hasher::sha256(), |piece| {
                stream.extend(piece);
                Ok(())
            })
            .unwrap();
        (compressed, stream)
    }

    fn decompress(stream: &[u8]) -> Vec<u8> {
        let mut again = Vec::new();
        Decoder::new(Compression::sniff(stream), stream, 40_000, 0)
            .read_to_end(&mut again)
            .unwrap();
        again
    }

    /// Text-like and noise-like stretches, of any length.
    fn input() -> impl Strategy<Value = Vec<u8>> {
        let stretch = prop_oneof![
            (any::<u8>(), 0..700_000_usize).prop_map(|(byte, length)| vec![byte; length]),
            (any::<u64>(), 0..700_000_usize).prop_map(|(seed, length)| {
                let mut state = seed | 1;
                let mut noise = Vec::with_capacity(length);
                for _ in 0..length {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    noise.push((state >> 56) as u8);
                }
                noise
            }),
        ];
        prop::collection::vec(stretch, 0..8).prop_map(|stretches| stretches.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

        #[test]
        fn the_bytes_do_not_depend_on_threads_and_are_the_input_again(input in input()) {
            for method in [Method::Gzip, Method::GzipSmall, Method::Zstd] {
                let (one, stream) = compress(method, &input, 1);
                let (many, same) = compress(method, &input, 5);
                prop_assert_eq!(&one, &many);
                prop_assert!(stream == same);
                prop_assert_eq!(&one.digest, &Digest::of(&stream));
                prop_assert_eq!(&one.input_digest, &Digest::of(&input));
                prop_assert_eq!((one.size, one.input_size), (stream.len() as u64, input.len() as u64));
                prop_assert!(decompress(&stream) == input);
            }
        }
    }

    #[rstest]
    #[case::gzip(Method::Gzip)]
    #[case::gzip_small(Method::GzipSmall)]
    #[case::zstd(Method::Zstd)]
    fn an_empty_layer_and_one_of_exact_blocks_are_whole_streams(#[case] method: Method) {
        for length in [0, 1, method.block(), 2 * method.block()] {
            let input = vec![7; length];
            assert!(decompress(&compress(method, &input, 2).1) == input, "{length}");
        }
    }

    #[rstest]
    #[case::gzip(Method::Gzip)]
    #[case::gzip_small(Method::GzipSmall)]
    fn the_header_names_no_time_no_file_and_no_system(#[case] method: Method) {
        let deflate_without_anything = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
        assert_eq!(compress(method, b"x", 2).1[..10], deflate_without_anything);
    }

    #[test]
    fn what_is_kept_is_the_input() {
        let input = vec![3; 1_300_000];
        let (kept, stream) = compress(Method::Keep, &input, 2);
        assert!(stream == input);
        assert_eq!(kept.digest, kept.input_digest);
    }

    #[test]
    fn an_error_of_the_sink_ends_the_compression_and_leaves_the_pool_usable() {
        let pool = Pool::new(2);
        let input = vec![7; 40 << 20];
        let mut pieces = 0;
        let error = pool
            .compress(Method::Gzip, &input[..], Hasher::sha256(), |_| {
                pieces += 1;
                if pieces == 3 {
                    Err(io::ErrorKind::BrokenPipe.into())
                } else {
                    Ok(())
                }
            })
            .unwrap_err();
        assert_eq!((error.kind(), pieces), (io::ErrorKind::BrokenPipe, 3));
        pool.compress(Method::Gzip, &input[..], Hasher::sha256(), |_| Ok(()))
            .unwrap();
    }

    /// Golden: a change of an encoder must be noticed, since it changes every new layer's digest.
    #[rstest]
    #[case::gzip_small(Method::GzipSmall, "libdeflate/1.26/6/1MiB", "d397344f2df8")]
    #[case::zstd(Method::Zstd, "zstd/1.5.7/3/2MiB", "7f1d555f687c")]
    #[case::gzip(Method::Gzip, "isa-l/2.31.0/1/512KiB", "09c8ed7b554b")]
    fn the_encoder_is_the_one_that_is_named(
        #[case] method: Method,
        #[case] name: &str,
        #[case] digest: &str,
    ) {
        #[cfg(target_arch = "x86_64")]
        let is_common = is_x86_feature_detected!("avx2") && !is_x86_feature_detected!("avx512f");
        #[cfg(not(target_arch = "x86_64"))]
        let is_common = false;
        if method == Method::Gzip && !is_common {
            crate::testing::skip(
                "ISA-L",
                "its bytes are only known of x86-64 processors with AVX2 and no more",
            );
            return;
        }
        let input: Vec<u8> = (0..3_000_000_u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        assert_eq!(
            (method.compressor(), compress(method, &input, 3).0.digest.short()),
            (Some(name), digest)
        );
    }
}
