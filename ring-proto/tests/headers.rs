//! Offsets, sizes and bytes against Xen's public C headers, as the C compiler of
//! this host sees them. Needs `libxen-dev` and `cc`.

use ring_proto::blkif::{Blk, Direction, List, RawRequest, RawResponse, Request, Segment};
use ring_proto::{Geometry, Gref, layout};
use std::mem::{offset_of, size_of};
use std::process::Command;
use zerocopy::IntoBytes;

const C: &str = r#"
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#define xen_mb() __sync_synchronize()
#define xen_rmb() __sync_synchronize()
#define xen_wmb() __sync_synchronize()
#include <xen/xen.h>
#include <xen/io/blkif.h>
#define O(n, t, f) printf(n " %zu\n", offsetof(t, f))
#define V(n, v) printf(n " %zu\n", (size_t)(v))
int main(void) {
    V("request", sizeof(blkif_request_t));
    V("response", sizeof(blkif_response_t));
    V("segment", sizeof(struct blkif_request_segment));
    O("req.id", blkif_request_t, id);
    O("req.sector", blkif_request_t, sector_number);
    O("req.handle", blkif_request_t, handle);
    O("req.seg", blkif_request_t, seg);
    O("discard.nr", blkif_request_discard_t, nr_sectors);
    O("indirect.nr", blkif_request_indirect_t, nr_segments);
    O("indirect.sector", blkif_request_indirect_t, sector_number);
    O("indirect.handle", blkif_request_indirect_t, handle);
    O("indirect.grefs", blkif_request_indirect_t, indirect_grefs);
    O("rsp.operation", blkif_response_t, operation);
    O("rsp.status", blkif_response_t, status);
    O("ring.req_prod", blkif_sring_t, req_prod);
    O("ring.req_event", blkif_sring_t, req_event);
    O("ring.rsp_prod", blkif_sring_t, rsp_prod);
    O("ring.rsp_event", blkif_sring_t, rsp_event);
    O("ring.slots", blkif_sring_t, ring);
    V("slot", sizeof(union blkif_sring_entry));
    blkif_sring_t *s = 0;
    V("slots.1", __CONST_RING_SIZE(blkif, 4096));
    V("slots.4", __RING_SIZE(s, 16384));
    blkif_request_indirect_t i;
    memset(&i, 0, sizeof i);
    i.operation = BLKIF_OP_INDIRECT;
    i.indirect_op = BLKIF_OP_WRITE;
    i.nr_segments = 32;
    i.id = 0x1234567890abcdefULL;
    i.sector_number = 0xfeed;
    i.handle = 0xca10;
    i.indirect_grefs[0] = 0x55aa;
    unsigned char raw[112] = {0};
    memcpy(raw, &i, sizeof i);
    printf("indirect.bytes ");
    for (int k = 0; k < 112; k++) printf("%02x", raw[k]);
    printf("\n");
    blkif_response_t r;
    memset(&r, 0, sizeof r);
    r.id = 0x42; r.operation = BLKIF_OP_DISCARD; r.status = BLKIF_RSP_EOPNOTSUPP;
    printf("response.bytes ");
    for (int k = 0; k < 16; k++) printf("%02x", ((unsigned char *)&r)[k]);
    printf("\n");
    return 0;
}
"#;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// What this crate says, in the words of the C program.
fn ours() -> Vec<String> {
    let segment = Segment::page(Gref::new(1));
    let slots = |bytes| Geometry::<Blk>::of(bytes).map_or(0, Geometry::slots) as usize;
    let indirect = Request::Indirect {
        direction: Direction::Write,
        sector: 0xfeed,
        segments: 32,
        pages: List::from_slice(&[Gref::new(0x55aa)]).unwrap(),
    };
    let body = offset_of!(RawRequest, body);
    let mut lines: Vec<String> = [
        ("request", size_of::<RawRequest>()),
        ("response", size_of::<RawResponse>()),
        ("segment", segment.raw().as_bytes().len()),
        ("req.id", offset_of!(RawRequest, id)),
        ("req.sector", offset_of!(RawRequest, sector)),
        ("req.handle", offset_of!(RawRequest, handle)),
        ("req.seg", body),
        ("discard.nr", body),
        ("indirect.nr", offset_of!(RawRequest, handle)),
        ("indirect.sector", offset_of!(RawRequest, sector)),
        ("indirect.handle", body),
        ("indirect.grefs", body + 4),
        ("rsp.operation", offset_of!(RawResponse, operation)),
        ("rsp.status", offset_of!(RawResponse, status)),
        ("ring.req_prod", layout::REQ_PROD),
        ("ring.req_event", layout::REQ_EVENT),
        ("ring.rsp_prod", layout::RSP_PROD),
        ("ring.rsp_event", layout::RSP_EVENT),
        ("ring.slots", layout::SLOTS),
        ("slot", size_of::<RawRequest>()),
        ("slots.1", slots(4096)),
        ("slots.4", slots(16384)),
    ]
    .map(|(name, value)| format!("{name} {value}"))
    .into();
    let raw = RawRequest::encode(0x1234_5678_90ab_cdef, 0xca10, &indirect);
    lines.push(format!("indirect.bytes {}", hex(raw.as_bytes())));
    let response = RawResponse::new(0x42, 5, -2);
    lines.push(format!("response.bytes {}", hex(response.as_bytes())));
    lines
}

#[test]
#[cfg_attr(miri, ignore = "runs a C compiler")]
fn the_layout_is_that_of_the_public_c_headers() {
    if !std::path::Path::new("/usr/include/xen/io/blkif.h").exists() {
        assert!(std::env::var_os("CI").is_none(), "libxen-dev is not installed");
        eprintln!("SKIPPED: no /usr/include/xen/io/blkif.h; apt-get install libxen-dev");
        return;
    }
    let dir = std::env::temp_dir().join(format!("ring-proto-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let (source, program) = (dir.join("layout.c"), dir.join("layout"));
    std::fs::write(&source, C).unwrap();
    let status =
        Command::new("cc").args(["-w", "-o"]).args([&program, &source]).status().expect("cc runs");
    assert!(status.success(), "the C program compiles");
    let output = Command::new(&program).output().expect("it runs");
    std::fs::remove_dir_all(&dir).unwrap();
    let theirs: Vec<String> =
        String::from_utf8(output.stdout).unwrap().lines().map(String::from).collect();
    assert_eq!(theirs, ours());
}
