//! A PNG writer for made-up photos: 8-bit RGB, one stored (uncompressed)
//! deflate block. Images are small, so tables and speed do not matter.

/// Encodes `rgb`, three bytes a pixel, row by row. Missing bytes are black.
///
/// A stored block holds 65 535 bytes; larger images would need more of them.
/// The side lengths are `u8`-sized to make that plain, and limited further.
pub(super) fn encode(width: u8, height: u8, rgb: &[u8]) -> Vec<u8> {
    let (width, height) = (width.clamp(1, 128), height.clamp(1, 128));
    let row_length = usize::from(width) * 3;
    let mut rows = Vec::new();
    for row in 0..usize::from(height) {
        rows.push(0); // filter type: none
        let pixels = rgb.iter().copied().skip(row * row_length);
        rows.extend(pixels.chain(std::iter::repeat(0)).take(row_length));
    }
    let length = u16::try_from(rows.len()).unwrap_or(u16::MAX);

    let mut zlib = vec![0x78, 0x01, 0x01]; // zlib header; last block, stored
    zlib.extend_from_slice(&length.to_le_bytes());
    zlib.extend_from_slice(&(!length).to_le_bytes());
    zlib.extend_from_slice(&rows);
    zlib.extend_from_slice(&adler32(&rows).to_be_bytes());

    let mut header = Vec::new();
    header.extend_from_slice(&u32::from(width).to_be_bytes());
    header.extend_from_slice(&u32::from(height).to_be_bytes());
    header.extend_from_slice(&[8, 2, 0, 0, 0]); // 8 bits, RGB, no interlace

    let mut png = b"\x89PNG\r\n\x1A\n".to_vec();
    chunk(&mut png, b"IHDR", &header);
    chunk(&mut png, b"IDAT", &zlib);
    chunk(&mut png, b"IEND", &[]);
    png
}

fn chunk(png: &mut Vec<u8>, kind: &[u8; 4], data: &[u8]) {
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    png.extend_from_slice(&length.to_be_bytes());
    let checked_from = png.len();
    png.extend_from_slice(kind);
    png.extend_from_slice(data);
    let crc = crc32(png.get(checked_from..).unwrap_or_default());
    png.extend_from_slice(&crc.to_be_bytes());
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0xEDB8_8320 } else { 0 })
    })
}

fn adler32(bytes: &[u8]) -> u32 {
    let (low, high) = bytes.iter().fold((1_u32, 0_u32), |(low, high), &byte| {
        let low = (low + u32::from(byte)) % 65_521;
        (low, (high + low) % 65_521)
    });
    (high << 16) | low
}
