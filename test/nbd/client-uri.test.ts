import { resolve } from 'node:path';
import { describe, expect, test } from 'vitest';
import { memberNames } from '../../lib/array/source.ts';
import { RaidError } from '../../lib/errors.ts';
import { isUri, parseNbdUri } from '../../lib/nbd/uri.ts';

const exports: readonly (readonly [string, string])[] = [
  ['nbd://example.com/disk', 'disk'],
  ['nbd+unix:///disk?socket=sock', 'disk'],
  ['nbd://example.com/', ''],
  ['nbd://example.com', ''],
  ['nbd://example.com//disk', '/disk'],
  ['nbd://example.com/hello%20world', 'hello world'],
  ['nbd://example.com/a/../b/./c', 'a/../b/./c'],
  ['nbd://example.com/a+b', 'a+b'],
  ['nbd://example.com/%C3%A4%25', 'ä%'],
  ['NBD://EXAMPLE.COM/Disk', 'Disk'],
];
for (const [uri, exportName] of exports) {
  test(`${uri} names the export ${JSON.stringify(exportName)}`, () => {
    expect(parseNbdUri(uri).exportName).toBe(exportName);
  });
}

describe('addresses', () => {
  const addresses: readonly (readonly [string, object])[] = [
    ['nbd://h/x', { kind: 'tcp', host: 'h', port: 10809 }],
    ['nbd://H:1/x', { kind: 'tcp', host: 'h', port: 1 }],
    ['nbd://h:/x', { kind: 'tcp', host: 'h', port: 10809 }],
    ['nbd://[::1]:65535', { kind: 'tcp', host: '::1', port: 65535 }],
    ['nbd://[fe80::1%25eth0]/x', { kind: 'tcp', host: 'fe80::1%eth0', port: 10809 }],
    ['nbd+unix:///x?socket=/run/a%20b.sock', { kind: 'unix', path: '/run/a b.sock' }],
    ['nbd+unix:///?socket=here.sock', { kind: 'unix', path: resolve('here.sock') }],
  ];
  for (const [uri, address] of addresses) {
    test(uri, () => {
      expect(parseNbdUri(uri).address).toEqual(address);
    });
  }
});

test('TLS parameters are those of the public text and of libnbd', () => {
  expect(parseNbdUri('nbds://h/x').tls).toEqual({ kind: 'x509', folder: null, hostname: null });
  expect(
    parseNbdUri('nbds://h/x?tls-certificates=/pki&tls-hostname=disk&tls-type=x509&tls-verify-peer=1').tls,
  ).toEqual({
    kind: 'x509',
    folder: '/pki',
    hostname: 'disk',
  });
  expect(parseNbdUri('nbds+unix://alice@/x?socket=/s&tls-psk-file=/keys').tls).toEqual({
    kind: 'psk',
    file: '/keys',
    user: 'alice',
  });
});

const refused: readonly (readonly [string, string])[] = [
  ['http://h/x', 'not a URI of NBD'],
  ['nbd', 'not a URI of NBD'],
  ['nbd+vsock://2/x', 'not a URI of NBD'],
  ['nbd:///x', 'names no host'],
  ['nbd://h:0/x', '0 is no port'],
  ['nbd://h:65536/x', '65536 is no port'],
  ['nbd://h:abc/x', 'HOST:PORT'],
  ['nbd://a b/x', 'is no name of a host'],
  ['nbd://::1/x', 'HOST:PORT'],
  ['nbd://h/x#y', 'fragment'],
  ['nbd://h/%zz', 'the export has a %'],
  ['nbd://h/%ff', 'the export has a %'],
  ['nbd://h/a%00b', 'the export has a zero byte'],
  ['nbd://h/\ud800', 'half a character'],
  [`nbd://h/${'x'.repeat(4097)}`, '4096 bytes at most'],
  ['nbd://h/x?socket=/s', 'a socket goes with nbd+unix://'],
  ['nbd://h/x?soket=/s', 'there is no parameter "soket"'],
  ['nbd+unix:///x', 'which socket'],
  ['nbd+unix:///x?socket=', 'which socket'],
  ['nbd+unix://x?socket=/s', 'nbd+unix:///export?socket=PATH'],
  ['nbd+unix:///x?socket=/s&socket=/t', 'socket is given twice'],
  ['nbd+unix:///x?socket=%00abstract', 'zero byte'],
  [`nbd+unix:///x?socket=/${'s'.repeat(107)}`, '107 bytes at most'],
  ['nbd://h/x?tls-hostname=y', 'nbds://'],
  ['nbds://h/x?tls-type=anon', 'protects against nobody'],
  ['nbds://h/x?tls-type=ssl', 'x509 or psk'],
  ['nbds://h/x?tls-verify-peer=0', 'believe any server'],
  ['nbds://h/x?tls-verify-peer=no', 'tls-verify-peer is 1'],
  ['nbds://h/x?tls-type=psk', 'tls-psk-file=FILE'],
  ['nbds://h/x?tls-psk-file=/k', 'whose key'],
  ['nbds://u@h/x?tls-psk-file=/k&tls-certificates=/c', 'goes with tls-type=x509'],
  ['nbds://u@h/x?tls-type=x509', 'a user goes with tls-type=psk'],
  ['nbd://u@h/x', 'a user goes with tls-type=psk'],
];
for (const [uri, says] of refused) {
  test(`${JSON.stringify(uri.slice(0, 60))} is refused: ${says}`, () => {
    const refusal = (() => {
      try {
        return parseNbdUri(uri);
      } catch (error) {
        return error;
      }
    })();
    expect(refusal).toBeInstanceOf(RaidError);
    expect(refusal).toMatchObject({ code: 'BAD_ARGUMENT', message: expect.stringContaining(says) });
  });
}

test('however it is written, what it means is written in one way, which means the same', () => {
  const groups = [
    ['nbd://h/x', 'NBD://H:10809/x', 'nbd://h:/%78'],
    ['nbd://h', 'nbd://h/'],
    ['nbd://h//a%2Fb', 'nbd://h//a/b'],
    ['nbd+unix:///x?socket=/run/s.sock', 'nbd+unix:///x?socket=/run/../run/s.sock'],
    [
      'nbds://h/x?tls-certificates=/a&tls-hostname=b',
      'nbds://h/x?tls-hostname=b&tls-certificates=/a&tls-type=x509',
    ],
    ['nbds+unix://a%40b@/x?socket=/s&tls-psk-file=/k', 'nbds+unix://a@b@/x?tls-psk-file=/k&socket=/s'],
  ];
  for (const group of groups) {
    const texts = group.map((each) => parseNbdUri(each).text);
    expect(new Set(texts).size).toBe(1);
    const [text = ''] = texts;
    expect(parseNbdUri(text)).toEqual(parseNbdUri(group[0] ?? ''));
    expect(parseNbdUri(text).text).toBe(text);
  }
});

test('one export is one identity, with TLS or without; others are others', () => {
  const same = (a: string, b: string): boolean => parseNbdUri(a).identity === parseNbdUri(b).identity;
  expect(same('nbd://h/x', 'nbds://H:10809/x')).toBe(true);
  expect(same('nbd://h/x', 'nbd://h/y')).toBe(false);
  expect(same('nbd://h/x', 'nbd://h:1/x')).toBe(false);
  expect(same('nbd://h/', 'nbd+unix:///?socket=/h')).toBe(false);
  // It becomes part of the name of a lock, which is short.
  expect(parseNbdUri(`nbd://h/${'x'.repeat(4000)}`).identity.length).toBeLessThan(60);
});

test('members are called by their export, else by their socket or host, and in full where that is not enough', () => {
  expect(memberNames(['nbd://h/a', 'nbd://h2:9/', 'nbd+unix:///?socket=/run/d3.sock', 'disk0.img'])).toEqual([
    'a',
    'h2:9',
    'd3',
    'disk0',
  ]);
  expect(memberNames(['nbd://h/a', 'nbd://h2/a'])).toEqual(['nbd://h/a', 'nbd://h2/a']);
});

test('what looks like a URI is meant as one; paths are paths', () => {
  for (const text of ['nbd://h', 'nbd+unix:///x', 'http://x', 'NBDS://h']) expect(isUri(text)).toBe(true);
  for (const text of ['/a/b', 'a:b', 'disk0.img', './nbd:/x', '://x']) expect(isUri(text)).toBe(false);
});
