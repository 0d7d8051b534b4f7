/** A request as data: what filters match on, delay by and record. */
export type Operation =
  | { readonly op: 'read'; readonly offsetBytes: number; readonly lengthBytes: number }
  | {
      readonly op: 'write';
      readonly offsetBytes: number;
      readonly lengthBytes: number;
      readonly fua: boolean;
    }
  | { readonly op: 'flush' }
  | { readonly op: 'discard'; readonly offsetBytes: number; readonly lengthBytes: number }
  | {
      readonly op: 'writeZeroes';
      readonly offsetBytes: number;
      readonly lengthBytes: number;
      readonly fua: boolean;
      readonly mayUnmap: boolean;
    }
  | { readonly op: 'blockStatus'; readonly offsetBytes: number; readonly lengthBytes: number }
  | { readonly op: 'resize'; readonly sizeBytes: number };

export type OperationName = Operation['op'];

/** `write 4096+512 fua` */
export function describeOperation(operation: Operation): string {
  switch (operation.op) {
    case 'flush':
      return 'flush';
    case 'resize':
      return `resize ${operation.sizeBytes}`;
    case 'read':
    case 'discard':
    case 'blockStatus':
      return `${operation.op} ${operation.offsetBytes}+${operation.lengthBytes}`;
    case 'write':
    case 'writeZeroes':
      return `${operation.op} ${operation.offsetBytes}+${operation.lengthBytes}${operation.fua ? ' fua' : ''}`;
  }
}
