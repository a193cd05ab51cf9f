%% Evaluated inside of a RabbitMQ node: evaluates what tests send, one expression list a message.
%% Each message has its length in four bytes in front, as Erlang's packet mode has it.
%% A call takes a millisecond; rabbitmqctl needs a virtual machine of its own, two seconds each.
rabbit:await_startup(),
{ok, [[File]]} = init:get_argument(control),
{ok, Listener} = gen_tcp:listen(0, [binary, {packet, 4}, {ip, {127, 0, 0, 1}}, {active, false}]),
{ok, Port} = inet:port(Listener),
Evaluate = fun(Source) ->
    {ok, Tokens, _} = erl_scan:string(unicode:characters_to_list(Source)),
    {ok, Expressions} = erl_parse:parse_exprs(Tokens),
    {value, Value, _} = erl_eval:exprs(Expressions, []),
    Value
end,
Serve = fun Serve(Socket) ->
    case gen_tcp:recv(Socket, 0) of
        {ok, Source} ->
            Answer = try io_lib:format("ok ~0tp", [Evaluate(Source)])
                catch Class:Reason -> io_lib:format("error ~0tp", [{Class, Reason}])
            end,
            ok = gen_tcp:send(Socket, unicode:characters_to_binary(Answer)),
            Serve(Socket);
        {error, _} -> gen_tcp:close(Socket)
    end
end,
%% The port is written aside and moved: whoever finds the file finds all of it.
ok = file:write_file(File ++ ".new", integer_to_list(Port)),
ok = file:rename(File ++ ".new", File),
Accept = fun Accept() ->
    {ok, Socket} = gen_tcp:accept(Listener),
    Server = spawn(fun() -> receive go -> Serve(Socket) end end),
    ok = gen_tcp:controlling_process(Socket, Server),
    Server ! go,
    Accept()
end,
Accept().
