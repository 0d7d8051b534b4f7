/**
 * The kernels in AssemblyScript, on raw addresses: no objects, no runtime, no static data (the memory is imported and
 * belongs to the engine, so nothing may be placed in it). One source makes two modules: `simd.wasm`, and `relaxed.wasm`
 * when the compiler is told of relaxed SIMD (ASC_FEATURE_RELAXED_SIMD is then a constant true).
 *
 * How one operation is cut:
 *
 *   strip   so many bytes of every chunk that what is accumulated stays in the L1 cache
 *   pass    up to 4 (P+Q) or 6 (XOR) sources over one strip, their addresses in registers; later passes add to what
 *           earlier ones left. More sources at once run out of registers and, with chunks that lie a multiple of 4 KiB
 *           apart, out of ways of the L1 cache: 16 sources in one pass run at half the speed of four passes of 4
 *   block   64 bytes of each source of the pass: 4 vectors
 *   rest    what a length leaves beyond whole blocks, byte by byte; lengths in practice are whole sectors
 *
 * The work area of an instance (`workAreaBytes` in ../kernels.ts):
 *
 *       0  16 times 0x1d, the polynomial without its top bit
 *      16  16 times 0x0f, the mask of a nibble
 *      32  the tables of up to two constants to multiply by, 32 bytes each
 *     128  the list of the call: addresses for XOR, passes for P+Q
 *    4096  a strip that stands in for P where P is not wanted
 *    8192  a strip that stands in for Q, likewise
 *
 * Why constants and tables go through memory: V8 may compute what stays the same in a loop anew at every use within it. In
 * Node 26 it does so with v128 constants (P+Q of 4: 35 against 56 GB/s), in Node 20 and 22 with the tables of a multiplication
 * when they are computed in the same function (recovery of two: 29 against 11 us for 64 KiB). A loaded value stays in its register.
 */

const TABLES_A: usize = 32;
const TABLES_B: usize = 64;
const LIST: usize = 128;
const SPARE_P: usize = 4096;
const STRIP: usize = 4096;
const SPARE_Q: usize = SPARE_P + STRIP;

/**
 * Where nothing is looked at twice but the target itself. STRIP, small enough for sources, targets and spares of one strip
 * to share 32 KiB of L1, is 30 % faster at verify and recovery of 16 MiB than 8192; this is 5 % faster at P+Q.
 */
const WIDE_STRIP: usize = 32768;

/** An address that stands for "not wanted": no range of a byte or more begins there. */
const NONE: usize = 0xffffffff;

// One pass of P+Q in the list: u32 count, u32 doublings after it, 4 addresses.
const PASS_COUNT: usize = 0;
const PASS_DOUBLINGS: usize = 4;
const PASS_SOURCES: usize = 8;
const PASS_BYTES: usize = 24;

@inline function polynomialOf(work: usize): v128 { return v128.load(work, 0); }
@inline function nibbleOf(work: usize): v128 { return v128.load(work, 16); }

@inline function xorLane(
  count: i32, more: bool,
  a: usize, b: usize, c: usize, d: usize, e: usize, f: usize, target: usize, at: usize,
): void {
  let sum = v128.load(a + at);
  if (count > 1) sum = v128.xor(sum, v128.load(b + at));
  if (count > 2) sum = v128.xor(sum, v128.load(c + at));
  if (count > 3) sum = v128.xor(sum, v128.load(d + at));
  if (count > 4) sum = v128.xor(sum, v128.load(e + at));
  if (count > 5) sum = v128.xor(sum, v128.load(f + at));
  if (more) sum = v128.xor(sum, v128.load(target + at));
  v128.store(target + at, sum);
}

/** `more` adds to the target what is there already. Unused addresses are folded away: `count` is constant in each caller. */
@inline function xorPass(count: i32, more: bool, list: usize, target: usize, offset: usize, bytes: usize): void {
  const end = bytes & ~63;
  const a0 = load<usize>(list) + offset;
  const b0 = count > 1 ? load<usize>(list, 4) + offset : 0;
  const c0 = count > 2 ? load<usize>(list, 8) + offset : 0;
  const d0 = count > 3 ? load<usize>(list, 12) + offset : 0;
  const e0 = count > 4 ? load<usize>(list, 16) + offset : 0;
  const f0 = count > 5 ? load<usize>(list, 20) + offset : 0;
  for (let k: usize = 0; k < end; k += 64) {
    const a = a0 + k, b = b0 + k, c = c0 + k, d = d0 + k, e = e0 + k, f = f0 + k, to = target + k;
    xorLane(count, more, a, b, c, d, e, f, to, 0);
    xorLane(count, more, a, b, c, d, e, f, to, 16);
    xorLane(count, more, a, b, c, d, e, f, to, 32);
    xorLane(count, more, a, b, c, d, e, f, to, 48);
  }
}

// One function each, so that the engine compiles, and optimises, only the shapes that are used.
function xor1(list: usize, target: usize, offset: usize, bytes: usize): void { xorPass(1, false, list, target, offset, bytes); }
function xor2(list: usize, target: usize, offset: usize, bytes: usize): void { xorPass(2, false, list, target, offset, bytes); }
function xor3(list: usize, target: usize, offset: usize, bytes: usize): void { xorPass(3, false, list, target, offset, bytes); }
function xor4(list: usize, target: usize, offset: usize, bytes: usize): void { xorPass(4, false, list, target, offset, bytes); }
function xor5(list: usize, target: usize, offset: usize, bytes: usize): void { xorPass(5, false, list, target, offset, bytes); }
function xor6(list: usize, target: usize, offset: usize, bytes: usize): void { xorPass(6, false, list, target, offset, bytes); }
function addXor1(list: usize, target: usize, offset: usize, bytes: usize): void { xorPass(1, true, list, target, offset, bytes); }
function addXor2(list: usize, target: usize, offset: usize, bytes: usize): void { xorPass(2, true, list, target, offset, bytes); }
function addXor3(list: usize, target: usize, offset: usize, bytes: usize): void { xorPass(3, true, list, target, offset, bytes); }
function addXor4(list: usize, target: usize, offset: usize, bytes: usize): void { xorPass(4, true, list, target, offset, bytes); }
function addXor5(list: usize, target: usize, offset: usize, bytes: usize): void { xorPass(5, true, list, target, offset, bytes); }
function addXor6(list: usize, target: usize, offset: usize, bytes: usize): void { xorPass(6, true, list, target, offset, bytes); }

function xorRest(list: usize, count: u32, target: usize, offset: usize, bytes: usize): void {
  for (let k = bytes & ~63; k < bytes; k++) {
    let sum: u32 = 0;
    for (let i: u32 = 0; i < count; i++) sum ^= load<u8>(load<usize>(list + (<usize>i << 2)) + offset + k);
    store<u8>(target + k, <u8>sum);
  }
}

/** `target` is the address of the strip itself, sources are taken at `offset`. */
function xorStrip(list: usize, count: u32, target: usize, offset: usize, bytes: usize): void {
  xorRest(list, count, target, offset, bytes);
  let passes = (count + 5) / 6;
  let left = count;
  let first = true;
  while (passes > 0) {
    // 7 sources as 4+3, not 6+1: even passes are the cheapest.
    const now = (left + passes - 1) / passes;
    if (first) {
      switch (now) {
        case 1: xor1(list, target, offset, bytes); break;
        case 2: xor2(list, target, offset, bytes); break;
        case 3: xor3(list, target, offset, bytes); break;
        case 4: xor4(list, target, offset, bytes); break;
        case 5: xor5(list, target, offset, bytes); break;
        case 6: xor6(list, target, offset, bytes); break;
        default: unreachable();
      }
    } else {
      switch (now) {
        case 1: addXor1(list, target, offset, bytes); break;
        case 2: addXor2(list, target, offset, bytes); break;
        case 3: addXor3(list, target, offset, bytes); break;
        case 4: addXor4(list, target, offset, bytes); break;
        case 5: addXor5(list, target, offset, bytes); break;
        case 6: addXor6(list, target, offset, bytes); break;
        default: unreachable();
      }
    }
    first = false;
    list += <usize>now << 2;
    left -= now;
    passes--;
  }
}

/** The target, when it is among the sources, is the first of the list. */
export function xor(work: usize, count: u32, target: usize, length: usize): void {
  if (count <= 6) {
    xorStrip(work + LIST, count, target, 0, length);
    return;
  }
  for (let offset: usize = 0; offset < length; offset += WIDE_STRIP) {
    xorStrip(work + LIST, count, target + offset, offset, min(WIDE_STRIP, length - offset));
  }
}

/**
 * 2*q, byte by byte: shifted left, and where the top bit fell out, 0x1d added. The mask of the top bits is `q < 0`, one
 * instruction; `i8x16.shr_s`, which says the same, is emulated with several on x86.
 *
 * Relaxed SIMD could save one instruction of six: x86's byte shuffle of 16 bytes 1d, indexed by q, is 1d exactly where the top bit
 * is clear, which is right up to a constant that is known beforehand and added at the end. Measured at 3 %, for
 * behaviour that the standard does not promise (indices 16 to 127); not worth it.
 */
@inline function double(q: v128, polynomial: v128): v128 {
  return v128.xor(i8x16.add(q, q), v128.and(i8x16.lt_s(q, i8x16.splat(0)), polynomial));
}

@inline function doubleByte(value: u32, polynomial: u32): u32 {
  return ((value << 1) & 0xff) ^ (value & 0x80 ? polynomial : 0);
}

@inline function syndromeLane(
  count: i32, more: bool,
  a: usize, b: usize, c: usize, d: usize, p: usize, q: usize, at: usize, polynomial: v128,
): void {
  let data = v128.load(a + at);
  let sumP = data;
  let sumQ = data;
  if (more) {
    sumP = v128.xor(v128.load(p + at), data);
    sumQ = v128.xor(double(v128.load(q + at), polynomial), data);
  }
  if (count > 1) {
    data = v128.load(b + at);
    sumP = v128.xor(sumP, data);
    sumQ = v128.xor(double(sumQ, polynomial), data);
  }
  if (count > 2) {
    data = v128.load(c + at);
    sumP = v128.xor(sumP, data);
    sumQ = v128.xor(double(sumQ, polynomial), data);
  }
  if (count > 3) {
    data = v128.load(d + at);
    sumP = v128.xor(sumP, data);
    sumQ = v128.xor(double(sumQ, polynomial), data);
  }
  v128.store(p + at, sumP);
  v128.store(q + at, sumQ);
}

@inline function syndromePass(
  count: i32, more: bool, pass: usize, p0: usize, q0: usize, offset: usize, bytes: usize, work: usize,
): void {
  const end = bytes & ~63;
  const polynomial = polynomialOf(work);
  const a0 = load<usize>(pass, PASS_SOURCES) + offset;
  const b0 = count > 1 ? load<usize>(pass, PASS_SOURCES + 4) + offset : 0;
  const c0 = count > 2 ? load<usize>(pass, PASS_SOURCES + 8) + offset : 0;
  const d0 = count > 3 ? load<usize>(pass, PASS_SOURCES + 12) + offset : 0;
  for (let k: usize = 0; k < end; k += 64) {
    const a = a0 + k, b = b0 + k, c = c0 + k, d = d0 + k, p = p0 + k, q = q0 + k;
    syndromeLane(count, more, a, b, c, d, p, q, 0, polynomial);
    syndromeLane(count, more, a, b, c, d, p, q, 16, polynomial);
    syndromeLane(count, more, a, b, c, d, p, q, 32, polynomial);
    syndromeLane(count, more, a, b, c, d, p, q, 48, polynomial);
  }
}

function syndrome1(pass: usize, p: usize, q: usize, offset: usize, bytes: usize, work: usize): void { syndromePass(1, false, pass, p, q, offset, bytes, work); }
function syndrome2(pass: usize, p: usize, q: usize, offset: usize, bytes: usize, work: usize): void { syndromePass(2, false, pass, p, q, offset, bytes, work); }
function syndrome3(pass: usize, p: usize, q: usize, offset: usize, bytes: usize, work: usize): void { syndromePass(3, false, pass, p, q, offset, bytes, work); }
function syndrome4(pass: usize, p: usize, q: usize, offset: usize, bytes: usize, work: usize): void { syndromePass(4, false, pass, p, q, offset, bytes, work); }
function addSyndrome1(pass: usize, p: usize, q: usize, offset: usize, bytes: usize, work: usize): void { syndromePass(1, true, pass, p, q, offset, bytes, work); }
function addSyndrome2(pass: usize, p: usize, q: usize, offset: usize, bytes: usize, work: usize): void { syndromePass(2, true, pass, p, q, offset, bytes, work); }
function addSyndrome3(pass: usize, p: usize, q: usize, offset: usize, bytes: usize, work: usize): void { syndromePass(3, true, pass, p, q, offset, bytes, work); }
function addSyndrome4(pass: usize, p: usize, q: usize, offset: usize, bytes: usize, work: usize): void { syndromePass(4, true, pass, p, q, offset, bytes, work); }

/** q = 2^times * q over the blocks of a strip: steps over chunks that are missing from the Q order. */
function doubleStrip(q: usize, times: u32, bytes: usize, work: usize): void {
  const end = bytes & ~63;
  const polynomial = polynomialOf(work);
  for (let k: usize = 0; k < end; k += 64) {
    const at = q + k;
    let q0 = v128.load(at, 0), q1 = v128.load(at, 16), q2 = v128.load(at, 32), q3 = v128.load(at, 48);
    for (let i: u32 = 0; i < times; i++) {
      q0 = double(q0, polynomial);
      q1 = double(q1, polynomial);
      q2 = double(q2, polynomial);
      q3 = double(q3, polynomial);
    }
    v128.store(at, q0, 0);
    v128.store(at, q1, 16);
    v128.store(at, q2, 32);
    v128.store(at, q3, 48);
  }
}

function syndromeRest(work: usize, passes: u32, p: usize, q: usize, offset: usize, bytes: usize): void {
  const polynomial = <u32>load<u8>(work);
  for (let k = bytes & ~63; k < bytes; k++) {
    let sumP: u32 = 0;
    let sumQ: u32 = 0;
    let pass = work + LIST;
    for (let i: u32 = 0; i < passes; i++, pass += PASS_BYTES) {
      const count = load<u32>(pass, PASS_COUNT);
      for (let s: u32 = 0; s < count; s++) {
        const data = <u32>load<u8>(load<usize>(pass + (<usize>s << 2), PASS_SOURCES) + offset + k);
        sumP ^= data;
        sumQ = doubleByte(sumQ, polynomial) ^ data;
      }
      const doublings = load<u32>(pass, PASS_DOUBLINGS);
      for (let s: u32 = 0; s < doublings; s++) sumQ = doubleByte(sumQ, polynomial);
    }
    store<u8>(p + k, <u8>sumP);
    store<u8>(q + k, <u8>sumQ);
  }
}

/** `p` and `q` are the addresses of the strip itself, sources are taken at `offset`. Without sources both become zeros. */
function syndromeStrip(work: usize, passes: u32, p: usize, q: usize, offset: usize, bytes: usize): void {
  if (passes == 0) {
    memory.fill(p, 0, bytes);
    memory.fill(q, 0, bytes);
    return;
  }
  let pass = work + LIST;
  for (let i: u32 = 0; i < passes; i++, pass += PASS_BYTES) {
    const count = load<u32>(pass, PASS_COUNT);
    if (i == 0) {
      switch (count) {
        case 1: syndrome1(pass, p, q, offset, bytes, work); break;
        case 2: syndrome2(pass, p, q, offset, bytes, work); break;
        case 3: syndrome3(pass, p, q, offset, bytes, work); break;
        case 4: syndrome4(pass, p, q, offset, bytes, work); break;
        default: unreachable();
      }
    } else {
      switch (count) {
        case 1: addSyndrome1(pass, p, q, offset, bytes, work); break;
        case 2: addSyndrome2(pass, p, q, offset, bytes, work); break;
        case 3: addSyndrome3(pass, p, q, offset, bytes, work); break;
        case 4: addSyndrome4(pass, p, q, offset, bytes, work); break;
        default: unreachable();
      }
    }
    const doublings = load<u32>(pass, PASS_DOUBLINGS);
    if (doublings != 0) doubleStrip(q, doublings, bytes, work);
  }
  syndromeRest(work, passes, p, q, offset, bytes);
}

@inline function placeOf(address: usize, offset: usize, spare: usize): usize {
  return address == NONE ? spare : address + offset;
}

/** P and Q, either of which may be NONE. */
export function syndrome(work: usize, passes: u32, p: usize, q: usize, length: usize): void {
  // One pass needs no strips: it reads everything once and accumulates in registers.
  if (passes == 1 && p != NONE && q != NONE && load<u32>(work + LIST, PASS_DOUBLINGS) == 0) {
    syndromeStrip(work, passes, p, q, 0, length);
    return;
  }
  const strip = p != NONE && q != NONE ? WIDE_STRIP : STRIP;
  for (let offset: usize = 0; offset < length; offset += strip) {
    const bytes = min(strip, length - offset);
    syndromeStrip(work, passes, placeOf(p, offset, work + SPARE_P), placeOf(q, offset, work + SPARE_Q), offset, bytes);
  }
}

/** Indices are below 16, where relaxed_swizzle is the same on every processor; it saves x86 an instruction that clips them. */
@inline function shuffle(table: v128, index: v128): v128 {
  return ASC_FEATURE_RELAXED_SIMD ? i8x16.relaxed_swizzle(table, index) : i8x16.swizzle(table, index);
}

/** The products of c with 0, 1, ... 15, by linearity: the sum of c*2^b over the bits b of each index. */
function productsOf(c: u32, polynomial: u32): v128 {
  const index = i8x16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const zero = i8x16.splat(0);
  const c2 = doubleByte(c, polynomial);
  const c4 = doubleByte(c2, polynomial);
  const c8 = doubleByte(c4, polynomial);
  let table = v128.and(i8x16.ne(v128.and(index, i8x16.splat(1)), zero), i8x16.splat(<i8>c));
  table = v128.xor(table, v128.and(i8x16.ne(v128.and(index, i8x16.splat(2)), zero), i8x16.splat(<i8>c2)));
  table = v128.xor(table, v128.and(i8x16.ne(v128.and(index, i8x16.splat(4)), zero), i8x16.splat(<i8>c4)));
  return v128.xor(table, v128.and(i8x16.ne(v128.and(index, i8x16.splat(8)), zero), i8x16.splat(<i8>c8)));
}

/** The tables of c for `multiply`, at `at` of the work area: by low nibble, and by high nibble 16 bytes later. */
function makeTables(work: usize, at: usize, c: u32): void {
  const polynomial = <u32>load<u8>(work);
  let c16 = c;
  for (let i = 0; i < 4; i++) c16 = doubleByte(c16, polynomial);
  v128.store(work + at, productsOf(c, polynomial), 0);
  v128.store(work + at, productsOf(c16, polynomial), 16);
}

/** c*v = c*(low nibble) + (16*c)*(high nibble): two lookups in tables of 16 that fit a register. */
@inline function multiply(v: v128, low: v128, high: v128, nibble: v128): v128 {
  return v128.xor(
    shuffle(low, v128.and(v, nibble)),
    shuffle(high, v128.and(i16x8.shr_u(v, 4), nibble)),
  );
}

@inline function multiplyByte(tables: usize, v: usize): u8 {
  return load<u8>(tables + (v & 15)) ^ load<u8>(tables + (v >> 4), 16);
}

// Recovery of two runs the syndrome of what is left into the places of what is lost, and then solves in place, strip by strip.

@inline function solveDDLane(
  x: usize, y: usize, p: usize, q: usize, at: usize, aLow: v128, aHigh: v128, bLow: v128, bHigh: v128, nibble: v128,
): void {
  const deltaP = v128.xor(v128.load(x + at), v128.load(p + at));
  const deltaQ = v128.xor(v128.load(y + at), v128.load(q + at));
  const dataX = v128.xor(multiply(deltaP, aLow, aHigh, nibble), multiply(deltaQ, bLow, bHigh, nibble));
  v128.store(x + at, dataX);
  v128.store(y + at, v128.xor(dataX, deltaP));
}

/** From x = Px and y = Qx to x = Dx and y = Dy. */
function solveDD(work: usize, x0: usize, y0: usize, p0: usize, q0: usize, bytes: usize): void {
  const nibble = nibbleOf(work);
  const aLow = v128.load(work, TABLES_A), aHigh = v128.load(work, TABLES_A + 16);
  const bLow = v128.load(work, TABLES_B), bHigh = v128.load(work, TABLES_B + 16);
  let k: usize = 0;
  for (const end = bytes & ~31; k < end; k += 32) {
    const x = x0 + k, y = y0 + k, p = p0 + k, q = q0 + k;
    solveDDLane(x, y, p, q, 0, aLow, aHigh, bLow, bHigh, nibble);
    solveDDLane(x, y, p, q, 16, aLow, aHigh, bLow, bHigh, nibble);
  }
  for (; k < bytes; k++) {
    const deltaP = load<u8>(x0 + k) ^ load<u8>(p0 + k);
    const deltaQ = load<u8>(y0 + k) ^ load<u8>(q0 + k);
    const dataX = multiplyByte(work + TABLES_A, deltaP) ^ multiplyByte(work + TABLES_B, deltaQ);
    store<u8>(x0 + k, dataX);
    store<u8>(y0 + k, dataX ^ deltaP);
  }
}

/** Dx = a*(P + Px) + b*(Q + Qx), Dy = Dx + P + Px. */
export function recoverDD(
  work: usize, passes: u32, x: usize, y: usize, p: usize, q: usize, a: u32, b: u32, length: usize,
): void {
  makeTables(work, TABLES_A, a);
  makeTables(work, TABLES_B, b);
  for (let offset: usize = 0; offset < length; offset += STRIP) {
    const bytes = min(STRIP, length - offset);
    const toX = placeOf(x, offset, work + SPARE_P), toY = placeOf(y, offset, work + SPARE_Q);
    syndromeStrip(work, passes, toX, toY, offset, bytes);
    solveDD(work, toX, toY, p + offset, q + offset, bytes);
  }
}

@inline function solveDPLane(x: usize, p: usize, q: usize, at: usize, low: v128, high: v128, nibble: v128): void {
  const dataX = multiply(v128.xor(v128.load(x + at), v128.load(q + at)), low, high, nibble);
  v128.store(x + at, dataX);
  v128.store(p + at, v128.xor(dataX, v128.load(p + at)));
}

/** From x = Qx and p = Px to x = Dx and p = P. */
function solveDP(work: usize, x0: usize, p0: usize, q0: usize, bytes: usize): void {
  const nibble = nibbleOf(work);
  const low = v128.load(work, TABLES_A), high = v128.load(work, TABLES_A + 16);
  let k: usize = 0;
  for (const end = bytes & ~31; k < end; k += 32) {
    const x = x0 + k, p = p0 + k, q = q0 + k;
    solveDPLane(x, p, q, 0, low, high, nibble);
    solveDPLane(x, p, q, 16, low, high, nibble);
  }
  for (; k < bytes; k++) {
    const dataX = multiplyByte(work + TABLES_A, load<u8>(x0 + k) ^ load<u8>(q0 + k));
    store<u8>(x0 + k, dataX);
    store<u8>(p0 + k, load<u8>(p0 + k) ^ dataX);
  }
}

/** Dx = c*(Q + Qx), P = Px + Dx. */
export function recoverDP(work: usize, passes: u32, x: usize, p: usize, q: usize, c: u32, length: usize): void {
  makeTables(work, TABLES_A, c);
  for (let offset: usize = 0; offset < length; offset += STRIP) {
    const bytes = min(STRIP, length - offset);
    const toP = placeOf(p, offset, work + SPARE_P), toX = placeOf(x, offset, work + SPARE_Q);
    syndromeStrip(work, passes, toP, toX, offset, bytes);
    solveDP(work, toX, toP, q + offset, bytes);
  }
}

@inline function solveDQLane(x: usize, q: usize, p: usize, at: usize, low: v128, high: v128, nibble: v128): void {
  const dataX = v128.xor(v128.load(x + at), v128.load(p + at));
  v128.store(x + at, dataX);
  v128.store(q + at, v128.xor(v128.load(q + at), multiply(dataX, low, high, nibble)));
}

/** From x = Px and q = Qx to x = Dx and q = Q. */
function solveDQ(work: usize, x0: usize, q0: usize, p0: usize, bytes: usize): void {
  const nibble = nibbleOf(work);
  const low = v128.load(work, TABLES_A), high = v128.load(work, TABLES_A + 16);
  let k: usize = 0;
  for (const end = bytes & ~31; k < end; k += 32) {
    const x = x0 + k, q = q0 + k, p = p0 + k;
    solveDQLane(x, q, p, 0, low, high, nibble);
    solveDQLane(x, q, p, 16, low, high, nibble);
  }
  for (; k < bytes; k++) {
    const dataX = load<u8>(x0 + k) ^ load<u8>(p0 + k);
    store<u8>(x0 + k, dataX);
    store<u8>(q0 + k, load<u8>(q0 + k) ^ multiplyByte(work + TABLES_A, dataX));
  }
}

/** Dx = P + Px, Q = Qx + c*Dx. */
export function recoverDQ(work: usize, passes: u32, x: usize, q: usize, p: usize, c: u32, length: usize): void {
  makeTables(work, TABLES_A, c);
  for (let offset: usize = 0; offset < length; offset += STRIP) {
    const bytes = min(STRIP, length - offset);
    const toX = placeOf(x, offset, work + SPARE_P), toQ = placeOf(q, offset, work + SPARE_Q);
    syndromeStrip(work, passes, toX, toQ, offset, bytes);
    solveDQ(work, toX, toQ, p + offset, bytes);
  }
}

@inline function updateLane(
  wantP: bool, before: usize, after: usize, p: usize, q: usize, at: usize, low: v128, high: v128, nibble: v128,
): void {
  const delta = v128.xor(v128.load(before + at), v128.load(after + at));
  if (wantP) v128.store(p + at, v128.xor(v128.load(p + at), delta));
  v128.store(q + at, v128.xor(v128.load(q + at), multiply(delta, low, high, nibble)));
}

@inline function updateAll(wantP: bool, work: usize, before0: usize, after0: usize, p0: usize, q0: usize, length: usize): void {
  const nibble = nibbleOf(work);
  const low = v128.load(work, TABLES_A), high = v128.load(work, TABLES_A + 16);
  let k: usize = 0;
  for (const end = length & ~63; k < end; k += 64) {
    const before = before0 + k, after = after0 + k, p = p0 + k, q = q0 + k;
    updateLane(wantP, before, after, p, q, 0, low, high, nibble);
    updateLane(wantP, before, after, p, q, 16, low, high, nibble);
    updateLane(wantP, before, after, p, q, 32, low, high, nibble);
    updateLane(wantP, before, after, p, q, 48, low, high, nibble);
  }
  for (; k < length; k++) {
    const delta = load<u8>(before0 + k) ^ load<u8>(after0 + k);
    if (wantP) store<u8>(p0 + k, load<u8>(p0 + k) ^ delta);
    store<u8>(q0 + k, load<u8>(q0 + k) ^ multiplyByte(work + TABLES_A, delta));
  }
}

/** P += before + after, Q += c*(before + after). */
export function updatePQ(work: usize, before: usize, after: usize, c: u32, p: usize, q: usize, length: usize): void {
  makeTables(work, TABLES_A, c);
  updateAll(true, work, before, after, p, q, length);
}

export function updateQ(work: usize, before: usize, after: usize, c: u32, q: usize, length: usize): void {
  makeTables(work, TABLES_A, c);
  updateAll(false, work, before, after, 0, q, length);
}

/** Offset of the first byte that differs, or NONE. */
export function compare(a: usize, b: usize, length: usize): usize {
  const end = length & ~63;
  let k: usize = 0;
  for (; k < end; k += 64) {
    const left = a + k, right = b + k;
    const d0 = v128.xor(v128.load(left, 0), v128.load(right, 0));
    const d1 = v128.xor(v128.load(left, 16), v128.load(right, 16));
    const d2 = v128.xor(v128.load(left, 32), v128.load(right, 32));
    const d3 = v128.xor(v128.load(left, 48), v128.load(right, 48));
    if (v128.any_true(v128.or(v128.or(d0, d1), v128.or(d2, d3)))) break;
  }
  for (; k < length; k++) {
    if (load<u8>(a + k) != load<u8>(b + k)) return k;
  }
  return NONE;
}

/** Offset of the first byte that is not zero, or NONE. */
export function firstNonZero(address: usize, length: usize): usize {
  const end = length & ~63;
  let k: usize = 0;
  for (; k < end; k += 64) {
    const at = address + k;
    const any = v128.or(
      v128.or(v128.load(at, 0), v128.load(at, 16)),
      v128.or(v128.load(at, 32), v128.load(at, 48)),
    );
    if (v128.any_true(any)) break;
  }
  for (; k < length; k++) {
    if (load<u8>(address + k) != 0) return k;
  }
  return NONE;
}

/** Offset of the first byte at which the sources do not add up to zero, or NONE. */
export function verifyXor(work: usize, count: u32, length: usize): usize {
  for (let offset: usize = 0; offset < length; offset += STRIP) {
    const bytes = min(STRIP, length - offset);
    xorStrip(work + LIST, count, work + SPARE_P, offset, bytes);
    const found = firstNonZero(work + SPARE_P, bytes);
    if (found != NONE) return offset + found;
  }
  return NONE;
}

/** Offset of the first byte at which P or Q is not what the data says, or NONE. */
export function verifyPQ(work: usize, passes: u32, p: usize, q: usize, length: usize): usize {
  for (let offset: usize = 0; offset < length; offset += STRIP) {
    const bytes = min(STRIP, length - offset);
    syndromeStrip(work, passes, work + SPARE_P, work + SPARE_Q, offset, bytes);
    // NONE is the largest number, so the smaller of the two is the first that was found.
    const found = min(compare(work + SPARE_P, p + offset, bytes), compare(work + SPARE_Q, q + offset, bytes));
    if (found != NONE) return offset + found;
  }
  return NONE;
}

export function copy(source: usize, target: usize, length: usize): void {
  memory.copy(target, source, length);
}

export function fill(target: usize, byte: u32, length: usize): void {
  memory.fill(target, <u8>byte, length);
}
