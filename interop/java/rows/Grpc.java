import com.google.protobuf.StringValue;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientInterceptors;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.MethodDescriptor.MethodType;
import io.grpc.Status;
import io.grpc.StatusException;
import io.grpc.StatusRuntimeException;
import io.grpc.netty.shaded.io.grpc.netty.NettyChannelBuilder;
import io.grpc.netty.shaded.io.netty.channel.epoll.EpollDomainSocketChannel;
import io.grpc.netty.shaded.io.netty.channel.epoll.EpollEventLoopGroup;
import io.grpc.netty.shaded.io.netty.channel.unix.DomainSocketAddress;
import io.grpc.protobuf.ProtoUtils;
import io.grpc.stub.ClientCalls;
import io.grpc.stub.MetadataUtils;
import java.util.ArrayList;
import java.util.Iterator;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.concurrent.TimeUnit;

/** Channels and calls of grpc-java. */
final class Grpc {
    /** A channel to `unix:…`, `tcp://host:port` or `host:port`. */
    static ManagedChannel channel(String endpoint) {
        if (endpoint.startsWith("unix:")) {
            var path = endpoint.substring("unix:".length()).replace("///", "/");
            return NettyChannelBuilder.forAddress(new DomainSocketAddress(path))
                    .eventLoopGroup(new EpollEventLoopGroup(1))
                    .channelType(EpollDomainSocketChannel.class)
                    .overrideAuthority("localhost")
                    .usePlaintext()
                    .build();
        }
        return NettyChannelBuilder.forTarget(endpoint.replace("tcp://", "")).usePlaintext().build();
    }

    static Channel with(Channel channel, String name, List<String> values) {
        var metadata = new Metadata();
        values.forEach(value -> metadata.put(Metadata.Key.of(name, Metadata.ASCII_STRING_MARSHALLER), value));
        return ClientInterceptors.intercept(channel, MetadataUtils.newAttachHeadersInterceptor(metadata));
    }

    static MethodDescriptor<StringValue, StringValue> method(String name, MethodType type) {
        var texts = ProtoUtils.marshaller(StringValue.getDefaultInstance());
        return MethodDescriptor.newBuilder(texts, texts)
                .setFullMethodName("interop.Interop/" + name)
                .setType(type)
                .build();
    }

    static String call(Channel channel, String method) {
        var answer = ClientCalls.blockingUnaryCall(
                channel, method(method, MethodType.UNARY), options(), StringValue.of("hello"));
        return answer.getValue();
    }

    /** Returns the messages of a stream, and its status at the end. */
    static List<String> stream(Channel channel, String method) {
        List<String> texts = new ArrayList<>();
        var code = code(() -> {
            Iterator<StringValue> messages = ClientCalls.blockingServerStreamingCall(
                    channel, method(method, MethodType.SERVER_STREAMING), options(), StringValue.of("hello"));
            messages.forEachRemaining(message -> texts.add(message.getValue()));
            return null;
        });
        texts.add(code.toString());
        return texts;
    }

    private static CallOptions options() {
        return CallOptions.DEFAULT.withDeadlineAfter(Harness.PATIENCE.toMillis(), TimeUnit.MILLISECONDS);
    }

    /** Returns the code of a call. */
    static Status.Code code(Callable<?> call) {
        try {
            call.call();
        } catch (Exception error) {
            return code(error);
        }
        return Status.Code.OK;
    }

    /** Returns the code inside this error. */
    static Status.Code code(Throwable error) {
        for (Throwable cause = error; cause != null; cause = cause.getCause()) {
            if (cause instanceof StatusRuntimeException status) {
                return status.getStatus().getCode();
            }
            if (cause instanceof StatusException status) {
                return status.getStatus().getCode();
            }
        }
        throw new AssertionError("no gRPC status in " + error);
    }

    private Grpc() {}
}
