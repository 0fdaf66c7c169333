// The services of the rows, described without generated code.
import { create, createFileRegistry } from "@bufbuild/protobuf";
import {
  FieldDescriptorProto_Label as Label,
  FieldDescriptorProto_Type as Type,
  FileDescriptorProtoSchema,
  MethodOptions_IdempotencyLevel as Idempotency,
  file_google_protobuf_wrappers,
} from "@bufbuild/protobuf/wkt";

const TEXT = ".google.protobuf.StringValue";

function method(name, input, output, more = {}) {
  return { name, inputType: input, outputType: output, ...more };
}

function field(name, number, type, more = {}) {
  return { name, number, type, label: Label.OPTIONAL, ...more };
}

function service(file, name) {
  const described = create(FileDescriptorProtoSchema, { syntax: "proto3", ...file });
  return createFileRegistry(described, () => file_google_protobuf_wrappers).getService(name);
}

const streaming = { serverStreaming: true };

/** The service of our servers; `Who` can also be called by GET. */
export const Interop = service(
  {
    name: "interop.proto",
    package: "interop",
    dependency: ["google/protobuf/wrappers.proto"],
    service: [
      {
        name: "Interop",
        method: [
          method("Who", TEXT, TEXT, { options: { idempotencyLevel: Idempotency.NO_SIDE_EFFECTS } }),
          method("Ops", TEXT, TEXT),
          method("Unlisted", TEXT, TEXT),
          method("Version", TEXT, TEXT),
          method("List", TEXT, TEXT, streaming),
          method("Wait", TEXT, TEXT, streaming),
        ],
      },
    ],
  },
  "interop.Interop",
);

const text = (name, number, more) => field(name, number, Type.STRING, more);
const repeated = { label: Label.REPEATED };
const bundles = { ...repeated, typeName: ".JWTBundlesResponse.BundlesEntry" };

/** The JWT calls of the Workload API. */
export const WorkloadApi = service(
  {
    name: "workload.proto",
    messageType: [
      { name: "JWTSVIDRequest", field: [text("audience", 1, repeated), text("spiffe_id", 2)] },
      { name: "JWTSVID", field: [text("spiffe_id", 1), text("svid", 2), text("hint", 3)] },
      {
        name: "JWTSVIDResponse",
        field: [field("svids", 1, Type.MESSAGE, { ...repeated, typeName: ".JWTSVID" })],
      },
      { name: "JWTBundlesRequest" },
      {
        name: "JWTBundlesResponse",
        field: [field("bundles", 1, Type.MESSAGE, bundles)],
        nestedType: [
          {
            name: "BundlesEntry",
            field: [text("key", 1), field("value", 2, Type.BYTES)],
            options: { mapEntry: true },
          },
        ],
      },
    ],
    service: [
      {
        name: "SpiffeWorkloadAPI",
        method: [
          method("FetchJWTSVID", ".JWTSVIDRequest", ".JWTSVIDResponse"),
          method("FetchJWTBundles", ".JWTBundlesRequest", ".JWTBundlesResponse", streaming),
        ],
      },
    ],
  },
  "SpiffeWorkloadAPI",
);
